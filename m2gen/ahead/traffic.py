"""What a model's layer launches on a device, with the bytes that each launch moves: ours by their plans, PyTorch's by
the shapes of its operators. The layer is called on fake tensors, so nothing is computed and no device is needed.

Every figure is an estimate. PyTorch's matrix products are taken at a share of the matrix units' rate, its elementwise
kernels at a share of the memory's bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from m2gen.errors import M2GenError
from m2gen.planner.fftconv.launches import FILTER
from m2gen.planner.step import Launch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from m2gen.ahead.models import Sizes
    from m2gen.device.limits import DeviceLimits

# shares of the peak, measured on an H100 (2026-11-26, torch 2.11, driver 580.159): bf16 products of 32,768 rows, 768 to
# 2304 columns and 768 to 768, 693 and 638 of 989 TFLOP/s; copies that turn what they read, 0.18 ms for 0.10 GB. Other
# elementwise kernels: `elementwise` of the device's row
_PRODUCTS, _TURNING = 0.68, 0.17
_NOTHING = {  # operators that move nothing: they make room, or look at what is there in another way
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "detach",
    "alias", "_reshape_alias", "view", "scalar_tensor", "is_same_size", "resize_",
}  # fmt: skip
_WRITES = {"copy_", "fill_", "zero_", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "full", "full_like"}
_MATRIX = {"mm", "addmm", "bmm", "baddbmm"}


@dataclass(slots=True)
class Layer:
    """One layer's launches: forward and (`Launch.back`) for its gradients; those that make its long filters apart,
    which are kept from call to call where their user says so."""

    name: str
    length: int
    batch: int
    launches: list[Launch] = field(default_factory=list)
    of_filters: list[Launch] = field(default_factory=list)
    least: float = 0.0  # bytes that its tensors and weights move at least, forward
    least_back: float = 0.0  # and for the gradients

    @property
    def forward(self) -> list[Launch]:
        return [one for one in self.launches if not one.back]

    @property
    def backward(self) -> list[Launch]:
        return [one for one in self.launches if one.back]


def layer_of(model: str, limits: DeviceLimits, sizes: Sizes, *, gradients: bool = False) -> Layer:
    """The launches of one Monarch Mixer layer of `model`, a folder's or a preset's, at the first length and batch.

    Dropout is left out. Raises M2GenError for a model without such a layer.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from m2gen.ahead.models import config_of, model_of
    from m2gen.dtypes import DTYPES
    from m2gen.runtime.build.limits import planned_for

    config = config_of(model)
    dtype = getattr(torch, DTYPES[sizes.dtype or "bf16"].torch_name)
    with FakeTensorMode(), planned_for(limits):
        layer = _first_layer(model_of(_long_enough(config, sizes), dtype), model)
        layer.train(gradients)
        for part in layer.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        longest = layer._rehearsed_length()
        length = (sizes.lengths or (longest,))[0]
        batch = sizes.batches[0] if sizes.batches else max(1, _TOKENS // length)
        found = Layer(model, length, batch)
        width = layer.attention.d_model
        x = torch.empty((batch, length, width), dtype=dtype, requires_grad=gradients)
        meter = _meter(found, limits)
        with _filters_apart(meter), torch.set_grad_enabled(gradients), meter:
            y = layer(x)
            if gradients:
                meter.back = True
                torch.autograd.backward(y, torch.empty_like(y))
                meter.filters = True
                torch.autograd.backward(meter.made, [torch.empty_like(one) for one in meter.made])
        found.least, found.least_back = _least(layer, batch * length, length, dtype.itemsize)
    return found


def _long_enough(config: Any, sizes: Sizes) -> Any:
    """The configuration for texts that are longer than it says, where it can be."""
    wanted, here = max(sizes.lengths or (0,)), getattr(config, "max_position_embeddings", None)
    if here is not None and wanted > here:
        config.max_position_embeddings = wanted
    return config


def _first_layer(model: nn.Module, name: str) -> Any:
    from m2gen.modules.mixer_block import MixerBlock

    for part in model.modules():
        if isinstance(part, MixerBlock):
            return part
    raise M2GenError(f"the layers of {name!r}", "none of them is a MixerBlock", "give an M2-BERT or an M2-GPT")


@contextmanager
def _filters_apart(meter: Any) -> Iterator[None]:
    """Launches within a filter's making are counted apart, and so are those of its gradients."""
    from m2gen.modules.hyena_filter import HyenaFilter

    made = HyenaFilter._filters

    def apart(self: HyenaFilter, length: int) -> Any:
        meter.filters = True
        found = made(self, length)
        meter.filters = False
        meter.made += [one for one in found if one is not None and one.requires_grad]
        return tuple(None if one is None else one.detach().requires_grad_(one.requires_grad) for one in found)

    HyenaFilter._filters = apart  # type: ignore[method-assign]
    try:
        yield
    finally:
        HyenaFilter._filters = made  # type: ignore[method-assign]


# -- what is launched --------------------------------------------------------------------------------------------------


def _meter(found: Layer, limits: DeviceLimits) -> Any:
    """A context in which every operator's launches are added to `found`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from m2gen.ahead.record import notes_of

    class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        back = filters = False

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.made: list[Any] = []  # filters

        def add(self, problem: Any, _: str, gradients: bool) -> None:
            """As `Wanted.add`: a problem that is posed, or its gradients."""
            self.put(_planned(problem, limits, gradients))

        def put(self, launches: list[Launch]) -> None:
            into = found.of_filters if self.filters else found.launches
            for one in launches:
                if one.name == FILTER:
                    found.of_filters.append(replace(one, back=self.back))
                else:
                    into.append(replace(one, back=self.back))

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func in notes:
                notes[func](*args)
            elif func.namespace != "m2gen":
                self.put(_of_torch(func, args, kwargs or {}, out, limits))
            return out

    meter = Meter()
    notes = notes_of(meter, "", limits)
    return meter


def _planned(problem: Any, limits: DeviceLimits, gradients: bool) -> list[Launch]:
    """The launches of the plan for a problem: its forward pass, or its gradients."""
    from m2gen.runtime import executor

    plan = executor.planned(problem, limits, 1)
    steps = [] if gradients else plan.steps[:-1]  # before the one that gives the result: the filter's spectrum
    before = [Launch(FILTER, s.estimate.bytes, s.estimate.seconds, s.estimate.flop) for s in steps]
    body = [one for one in plan.body.launches(problem, limits, gradients) if one.back == gradients]
    if plan.body.untried is not None:
        body = [one if one.name == FILTER else replace(one, name=f"{one.name} *") for one in body]
    return [*before, *body]


def _of_torch(func: Any, args: Any, kwargs: Any, out: Any, limits: DeviceLimits) -> list[Launch]:
    from torch.utils._pytree import tree_leaves

    name = func._schema.name.split("::")[1]
    outputs = _tensors(tree_leaves(out))
    if name in _NOTHING or _only_looks(func) or not outputs:
        return []
    inputs = [] if name in _WRITES - {"copy_"} else _tensors(tree_leaves((args, kwargs)))
    if name == "copy_":
        inputs = inputs[1:]
    tensors = [*{id(t): t for t in inputs}.values(), *outputs]
    moved = float(sum(_bytes(t) for t in tensors))
    flop = 0.0
    if name in _MATRIX:
        a, b = inputs[-2], inputs[-1]
        flop = 2.0 * a.numel() * b.shape[-1]
        seconds = max(flop / (_matrix_rate(a.element_size(), limits) * _PRODUCTS), moved / limits.dram_bandwidth)
    else:
        share = _TURNING if _turns(tensors) else limits.elementwise
        seconds = moved / (limits.dram_bandwidth * share)
    return [Launch(f"torch {name}", moved, seconds + limits.call_seconds, flop)]


def _matrix_rate(each: int, limits: DeviceLimits) -> float:
    """FLOP/s of products of numbers of so many bytes; float32 without TF32, which PyTorch leaves off."""
    if each == 2:
        return limits.matrix16
    return limits.matrix32 * (limits.fp64_ratio if each == 8 else 1.0)


def _only_looks(func: Any) -> bool:
    """Whether what it returns is its arguments' memory, unwritten."""
    returned = func._schema.returns
    return bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)


def _tensors(leaves: list[Any]) -> list[Any]:
    import torch

    return [t for t in leaves if isinstance(t, torch.Tensor) and t.numel() > 1]


def _bytes(t: Tensor) -> int:
    """Of memory: an expanded axis is there once."""
    numbers = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * t.element_size()


def _turns(tensors: list[Any]) -> bool:
    """Whether the large ones among the tensors have different axes as neighbours in memory."""
    largest = max(t.numel() for t in tensors)
    return len({_nearest(t) for t in tensors if t.numel() * 2 > largest and t.dim() > 1}) > 1


def _nearest(t: Tensor) -> int:
    """The axis whose entries are neighbours in memory, counted from the last."""
    axes = [axis for axis in range(t.dim()) if t.shape[axis] > 1 and t.stride(axis)]
    return min(axes, key=lambda axis: t.stride(axis)) - t.dim() if axes else -1


# -- the least ---------------------------------------------------------------------------------------------------------


def _least(layer: Any, rows: int, length: int, each: int) -> tuple[float, float]:
    """Bytes that a layer has to move, forward and for its gradients: of every matrix product and of every mixing of
    positions the operands and the result, each read or written once; the rows around a norm, which needs whole ones;
    weights and long filters once. Gates, activations, biases, additions, layouts and the first step of a norm's
    neighbour are free: a kernel that has the numbers in hand can do them."""
    mixer, mlp = layer.attention, layer.mlp
    tensor = float(rows * mixer.d_model * each)
    second = mixer.filter_fn2 is not None
    norms = (mixer.layernorm is not None) + (layer.norm is not None)
    weights = sum(p.numel() * each for p in mixer.in_linear.parameters())
    weights += sum(p.numel() * each for p in mixer.out_linear.parameters())
    filters = (1 + second) * (1 + mixer.bidirectional) * mixer.d_model * length * 4.0
    # in_linear u -> h; short convolutions h -> z, g; long ones z, g, u -> y; out_linear y -> a
    forward = (1 + 3) + (3 + 2) + (2 + second + 1) + (1 + 1)
    # out_linear: da -> dy, its weight (da, y); long: dy -> du, its filter (dy, u); dy, z, g -> dz, dg; short: h, dz, dg
    # -> dh; in_linear: dh and du -> du, its weight (dh, u)
    back = (2 + 2) + 4 * second + 5 + (5 + 3) + (3 + second + 1) + 4
    if mlp is not None:
        hidden = mlp.wo.in_features / mixer.d_model
        weights += sum(p.numel() * each for p in mlp.parameters())
        norms += mlp.layernorm is not None
        # gated_layers a -> hidden; wo hidden, a -> o
        forward += (1 + hidden) + (hidden + 1 + 1)
        # wo: do -> dhidden, its weight; gated_layers: a, dhidden -> dz; dz, do -> da; its weight (dz, a)
        back += (1 + hidden) + (1 + hidden) + (1 + hidden + 2 * hidden) + (2 * hidden + 1 + 1) + (2 * hidden + 1)
    forward, back = forward + 2 * norms, back + 3 * norms
    return forward * tensor + weights + filters, back * tensor + 2 * weights + 2 * filters


# -- as text -----------------------------------------------------------------------------------------------------------


_TOKENS = 32768  # of a call, where nothing is said of batches


def explained(
    model: str, limits: DeviceLimits, *, lengths: str, batches: str, dtype: str, backward: bool
) -> Iterator[str]:
    """The lines of `m2gen plan --model`: for each length the launches of a layer, and what all layers should take."""
    from m2gen.ahead.models import Sizes, config_of

    asked = Sizes.of(lengths, batches or "1", dtype)
    config = config_of(model)
    layers = int(getattr(config, "num_hidden_layers", 0) or getattr(config, "n_layers", 1))
    longest = getattr(config, "max_position_embeddings", None)
    for length in asked.lengths or (None,):
        if longest is not None and (length or 0) > longest:
            yield f"{model} is made for {longest} tokens: planned as with max_position_embeddings={length}"
        for batch in asked.batches if batches else (None,):
            sizes = Sizes(() if length is None else (length,), () if batch is None else (batch,), asked.dtype)
            yield from _lines(layer_of(model, limits, sizes, gradients=backward), limits, layers)


def _lines(found: Layer, limits: DeviceLimits, layers: int) -> Iterator[str]:
    """Every launch of a layer, and what they add up to."""
    from m2gen.planner.step import duration

    yield f"a layer of {found.name} on {limits.arch}, {found.batch} sequences of {found.length} tokens"
    for title, launches, least in (
        ("forward", found.forward, found.least),
        ("gradients", found.backward, found.least_back),
    ):
        if launches:
            yield f"{title}: {len(launches)} launches"
            for those in _alike(launches):
                one, count = those[0], len(those)
                figures = f"{duration(one.seconds):>9}  {one.bytes / 1e6:9.1f} MB  {one.flop / 1e9:8.1f} GFLOP"
                yield f"  {figures}  {one.name}{f', {count} times' if count > 1 else ''}"
            moved, seconds = totals(launches)
            against = f"{moved / least:.2f} times the least ({least / 1e6:.1f} MB)"
            yield f"  {duration(seconds):>9}  {moved / 1e6:9.1f} MB, {against}"
    for back, what in ((False, "filters, unless they are kept"), (True, "gradients of filters")):
        those = [one for one in found.of_filters if one.back == back]
        if those:
            moved, seconds = totals(those)
            yield f"{what}: {len(those)} launches, {moved / 1e6:.1f} MB, {duration(seconds)}"
    tokens = found.batch * found.length

    def taken(what: str, launches: Iterable[Launch]) -> str:
        seconds = layers * totals(launches)[1]
        rate = f"{tokens / seconds / 1e3:.0f} tokens a millisecond"
        return f"{layers} layers, {tokens} tokens: {duration(seconds)} {what}, {rate}"

    yield taken("forward with filters kept", found.forward)
    if found.backward:
        moved, least = totals(found.launches)[0], found.least + found.least_back
        yield f"forward and gradients: {moved / 1e6:.1f} MB, {moved / least:.2f} times the least"
        yield taken("forward and gradients, filters made", [*found.launches, *found.of_filters])
    yield "Every figure is an estimate of the cost model; embeddings and heads are not in it."
    if any(one.name.endswith(" *") for one in found.launches):
        yield "* no device has run these kernels yet: they are checked before their first use (M2GEN_UNTRIED)"


def _alike(launches: Iterable[Launch]) -> Iterable[list[Launch]]:
    """Equal ones together, in the order of the first of each."""
    found: dict[Launch, list[Launch]] = {}
    for one in launches:
        found.setdefault(one, []).append(one)
    return found.values()


def totals(launches: Iterable[Launch]) -> tuple[float, float]:
    """Bytes and seconds."""
    launches = list(launches)
    return sum(one.bytes for one in launches), sum(one.seconds for one in launches)
