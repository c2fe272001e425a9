"""What the stateful test calls: tiny modules and models, their outputs, and fresh copies of them made from bytes.

A fresh copy is built anew, from its configuration, and has never been called: nothing can be kept in it. What the
subject has been given since (hooks, parametrizations, adapters, modules taken away) is put on it in the same way, then
every parameter and buffer is copied byte by byte, with its strides and its place in its storage, so that both run the
same kernels on memory that is aligned alike and have to agree to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import m2gen
from m2gen.models import M2GPT, M2BertConfig, M2BertForMaskedLM, M2BertModel, M2GPTConfig
from m2gen.modules import LongConv, SequenceMixer
from m2gen.modules.hyena_filter import HyenaFilter, Sine

WIDTH, WORDS = 16, 40
FILTER: dict[str, Any] = {"width": 8}
reseed = torch.default_generator.manual_seed  # torch.manual_seed writes down the stack, once for each kind of GPU


class Bare(nn.Module):
    """The user's own filters in `fftconv`, with gates: u (B, WIDTH, L) -> likewise."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        taps = 31  # odd, for mode "same"
        self.k = nn.Parameter(torch.randn(WIDTH, taps))
        self.k_rev = nn.Parameter(torch.randn(WIDTH, taps)) if mode == "bidirectional" else None
        self.register_buffer("skip", torch.randn(WIDTH))

    def forward(self, u: Tensor) -> Tensor:
        gate = u.roll(1, 0)
        return m2gen.fftconv(u, self.k, mode=self.mode, k_rev=self.k_rev, post_gate=gate, skip=self.skip)


def _bert(cls: type[nn.Module]) -> nn.Module:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 40}
    return cls(M2BertConfig(vocab_size=WORDS, hyena_filter_order=8, hidden_dropout_prob=0.1, **sizes))


def _gpt(causal: str) -> nn.Module:
    return M2GPT(M2GPTConfig(WORDS, WIDTH, 2, 96, filter_options={"heads": 4, **FILTER}, causal=causal))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "mixer": lambda: SequenceMixer(WIDTH, 40, norm=True, **FILTER),
    "causal mixer": lambda: SequenceMixer(WIDTH, 40, bidirectional=False, residual_long_conv=False, **FILTER),
    "causal LongConv": lambda: LongConv(WIDTH, 40, heads=2, w_mod=2.0, **FILTER),
    "bidirectional LongConv": lambda: LongConv(WIDTH, 40, mode="bidirectional", layout="BLH", **FILTER),
    "circular LongConv": lambda: LongConv(WIDTH, 40, mode="circular", modulate=False, **FILTER),
    "M2BertModel": lambda: _bert(M2BertModel),
    "M2BertForMaskedLM": lambda: _bert(M2BertForMaskedLM),
    "M2GPT": lambda: _gpt("fft"),
    "M2GPT, monarch": lambda: _gpt("monarch"),
    "causal fftconv": lambda: Bare("causal"),
    "bidirectional fftconv": lambda: Bare("bidirectional"),
    "same fftconv": lambda: Bare("same"),
}
LENGTHS = (40, 33)  # one transform size, so that few kernels are compiled
LONG = 72  # for generation: longer than a block of the cache


def build(kind: str, seed: int) -> nn.Module:
    """A new module in evaluation, no parameter at a value at which a wrong filter or gate would not show."""
    reseed(seed)
    module = KINDS[kind]().eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "filter" in name and name.endswith("weight"):
                p.uniform_(-1, 1)
            elif name.endswith("bias") or "norm" in name.lower():
                p.add_(0.3 * torch.randn_like(p))
            elif name.endswith(("linear.weight", "dense.weight", "embedding.weight", "embeddings.weight")):
                p.normal_(std=p[0].numel() ** -0.5)
    return module


# ---- fresh copies ------------------------------------------------------------------------------------------------


def fresh(module: nn.Module, kind: str, structure: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of `module` that has never been called; `structure` wraps what was built as `module` was."""
    twin = structure(KINDS[kind]())
    _parametrize_like(module, twin)
    copies: dict[int, Any] = {}
    for (name, source), (same, target) in zip(_walk(module), _walk(twin), strict=True):
        assert name == same, f"{name} of the subject stands beside {same} of its fresh copy"
        target.training = source.training
        for entry, p in source._parameters.items():
            target._parameters[entry] = None if p is None else _copied(p, copies)
        for entry, b in source._buffers.items():
            target._buffers[entry] = None if b is None else _copied(b, copies)
        if isinstance(source, Sine) and isinstance(target, Sine):
            target.w_mod = source.w_mod
        for hook in source._forward_hooks.values():
            if isinstance(hook, Times):
                target.register_forward_hook(hook)
        for before in source._forward_pre_hooks.values():
            if isinstance(before, TimesBefore):
                target.register_forward_pre_hook(before)
    return twin


def _walk(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that the subject has taken away are taken from the copy by `strict`; so `None` counts as a module."""
    yield from module.named_modules()


def _parametrize_like(module: nn.Module, twin: nn.Module) -> None:
    targets = dict(twin.named_modules())
    for name, source in list(module.named_modules()):
        if isinstance(source, HyenaFilter) and source.modulation is None:
            targets[name].modulation = None  # type: ignore[assignment]
        if parametrize.is_parametrized(source):
            for entry, chain in source.parametrizations.items():  # type: ignore[union-attr]
                for part in chain:
                    parametrize.register_parametrization(targets[name], entry, type(part)())


def _copied(tensor: Tensor, copies: dict[int, Any]) -> Tensor:
    """The same bytes at the same offset of another storage; one copy for each tensor, however many names it has."""
    if id(tensor) not in copies:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            storage = tensor.untyped_storage().clone()
            new = torch.empty(0, dtype=tensor.dtype)
            new.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        copies[id(tensor)] = (new, tensor)  # the tensor, too, so that its id stays its own
    return copies[id(tensor)][0]


# ---- what stands around a layer ----------------------------------------------------------------------------------

GAINS = {"hook": 1.5, "parametrization": 1.5}  # what hooks and parametrizations read at their call


class Times:
    """A forward hook; one that its module's copies and pickles share."""

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(None if x is None else x * GAINS["hook"] for x in output)
        return output * GAINS["hook"]


class TimesBefore:
    """A forward pre-hook."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        return tuple(x * GAINS["hook"] if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


class Gain(nn.Module):
    """A parametrization with a parameter and something that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.25))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gain * GAINS["parametrization"]).to(x.dtype)


# ---- calls -------------------------------------------------------------------------------------------------------

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
}


@functools.cache
def signal(length: int, dtype: torch.dtype, last: bool) -> Tensor:
    """(2, length, WIDTH), or (2, WIDTH, length) where the length comes `last`."""
    shape = (2, WIDTH, length) if last else (2, length, WIDTH)
    with torch.inference_mode(False):  # whatever the mode of the first to ask
        return torch.randn(shape, generator=torch.Generator().manual_seed(length)).to(dtype)


@functools.cache
def tokens(length: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.randint(1, WORDS, (2, length), generator=torch.Generator().manual_seed(length))


def dtype_of(module: nn.Module) -> torch.dtype:
    """Of the arithmetic outside of filters, which stay in float32."""
    named = [p for name, p in module.named_parameters() if "filter_fn" not in name and p.is_floating_point()]
    return named[0].dtype if named else next(module.parameters()).dtype


def call(module: nn.Module, kind: str, length: int) -> Tensor:
    """One forward pass, in the mode that is on; dropout draws the same each time."""
    reseed(length)
    if "M2Bert" in kind:
        mask = torch.ones(2, length, dtype=torch.long)
        mask[1, length - 5 :] = 0
        out = module(input_ids=tokens(length), attention_mask=mask)
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[mask.bool()]
    if "M2GPT" in kind:
        return module(tokens(length))
    u = signal(length, dtype_of(module), last="conv" in kind.lower() and kind != "bidirectional LongConv")
    if "LongConv" in kind:
        return module(u, u.roll(1, 0), u.roll(1, 1))
    if kind == "mixer":
        return module(u, torch.arange(length).expand(2, -1) < torch.tensor([[length], [length - 4]]))
    return module(u)


def results(module: nn.Module, kind: str, length: int, mode: str, made: str = "no_grad") -> list[Tensor]:
    """What the test compares: outputs; with gradients on those, too; of an M2GPT also what its cache gives, `made` in
    one mode and used in another."""
    with MODES[mode]():
        found = [call(module, kind, length)]
        if mode == "grad":
            # by name: what was taken out and registered again comes last
            wanted = [p for _, p in sorted(module.named_parameters(), key=lambda named: named[0]) if p.requires_grad]
            if wanted and found[0].requires_grad:
                grads = torch.autograd.grad(found[0].square().sum(), wanted, allow_unused=True)
                found += [g for g in grads if g is not None]
        elif isinstance(module, M2GPT):
            with MODES[made]():
                cache = module.new_cache(2, LONG)
            text = tokens(LONG)
            for size in (1, 60, 1, 1, 1, 1, 2):  # a block ends at 64
                reseed(size)
                found.append(module(text[:, cache.position :][:, :size], cache=cache))
            reseed(0)
            found.append(module.generate(text[:, :62], 4, temperature=0))
    return [x.detach() for x in found]


def difference(got: list[Tensor], want: list[Tensor]) -> float:
    """0 where every bit is the same; else the largest difference relative to the largest entry."""
    assert len(got) == len(want)
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not torch.equal(a, b) and not torch.equal(a.nan_to_num(7), b.nan_to_num(7)):
            far = (a.double() - b.double()).abs().nan_to_num(float("inf")).max() / b.double().abs().max()
            worst = max(worst, float(far), 5e-324)
    return worst
