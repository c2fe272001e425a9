"""`m2gen.rehearse` and `model.rehearse`: what calls of a model will need, compiled together before the first of them.

A copy of the model with PyTorch's fake tensors for weights is called, so that nothing is computed and the model itself
is not touched; the problems that its calls pose (`record`) are planned and bound as calls would do it.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from m2gen.ahead.record import Wanted, counted, recorder
from m2gen.errors import M2GenError, ProblemError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from m2gen.device.limits import DeviceLimits
    from m2gen.modules.rehearsal import Rehearses

_ALIKE = 3  # of a run of layers that are alike: its first, one between two others, its last
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How many problems were met; of their kernels how many were `compiled`, were `there` before, and `failed`."""

    problems: int
    compiled: int
    there: int
    failed: int
    seconds: float

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        kernels = f"{counted(self.compiled, 'kernel')} compiled, {self.there} were there{failed}"
        return f"{counted(self.problems, 'problem')}, {kernels}, {self.seconds:.1f} s"


def rehearse(
    model: Rehearses,
    lengths: int | Iterable[int] | None = None,
    batches: int | Iterable[int] = 1,
    *,
    training: bool = False,
) -> Rehearsal:
    """Compile all kernels that calls of `model` need, at once and before anyone waits for one.

    Every length is met with every batch, in evaluation and, with `training`, forward and backward in training: with
    padding and without, in the dtypes and on the device that the model has now, under the autocast that holds now, with
    the number of threads that PyTorch has now. M2-GPT is met with its cache as well, for texts of any length that start
    with so many tokens. Lengths share kernels, and what is on disk or compiled ahead is taken from there. Calls at
    these sizes then compile nothing. Without a compiler, nothing is compiled, and the log says so, as at a call.

    The model stays as it is: weights, gradients, buffers, random state, mode, kept filters. Its modules' hooks are not
    run, so what they do to shapes or dtypes is not seen.

    On a GPU Triton's cache is filled by processes of their own.

    Args:
        model: an M2-BERT with any head, M2-GPT, M2-ViT, a SequenceMixer or a MixerBlock. All have this as a method.
        lengths: of tokens, one or several; None for the longest that the model takes. An M2-ViT has no choice, and
            takes None alone.
        batches: numbers of sequences, or of images, one or several.
        training: whether kernels of training are wanted, too.

    Returns:
        A `Rehearsal`: numbers of problems and kernels, and the seconds that it took.

    Raises:
        ProblemError: for lengths and batches that are not whole numbers from 1 on, none of them, or longer than the
            model takes; for another module, and for one that PyTorch cannot call on fake tensors, or whose weights are
            away.
        WisdomError: with M2GEN_RIGOR=wisdom_only, for a problem that was never tuned.
    """
    from m2gen.runtime.build.limits import live  # late: it loads torch

    start = time.perf_counter()
    sizes = list(sizes_of(model, lengths, batches))
    with _undisturbed(model) as device:
        limits = live(device)
        wanted = _posed(model, sizes, training, limits)
        compiled, there, failed = _compile(wanted, limits)
    return Rehearsal(len(wanted.problems), compiled, there, failed, time.perf_counter() - start)


# -- sizes -------------------------------------------------------------------------------------------------------------


def sizes_of(
    model: object, lengths: int | Iterable[int] | None, batches: int | Iterable[int]
) -> Iterator[tuple[int, int]]:
    """Every length with every batch; the length is 0 where the model has one size. Raises ProblemError."""
    from m2gen.modules.rehearsal import Rehearses

    kind = type(model).__name__
    if not isinstance(model, Rehearses):
        do = "give an M2-BERT, M2-GPT, M2-ViT, SequenceMixer or MixerBlock; call any other once on an example instead"
        raise ProblemError(f"a rehearsal of a {kind}", "it does not say how it is called", do)
    longest = model._rehearsed_length()
    rows = _numbers("batches", batches)
    if longest is None:
        if lengths is not None:
            found = "its inputs have one size, and no length"
            raise ProblemError(f"a rehearsal of a {kind} at lengths {lengths!r}", found, "leave lengths out")
        return ((0, batch) for batch in rows)
    wanted = (longest,) if lengths is None else _numbers("lengths", lengths)
    if max(wanted) > longest:
        found = f"it was made for at most {longest}"
        do = "leave longer ones out, or build the model for them"
        raise ProblemError(f"a rehearsal of a {kind} at length {max(wanted)}", found, do)
    return product(wanted, rows)


def _numbers(name: str, given: Any) -> tuple[int, ...]:
    values = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else (given,)
    wrong = [value for value in values if not isinstance(value, int) or isinstance(value, bool) or value < 1]
    if wrong or not values:
        found = f"{wrong[0]!r} is no size" if wrong else "none is given"
        raise ProblemError(f"a rehearsal with {name} {given!r}", found, "give whole numbers from 1 on, at least one")
    return tuple(dict.fromkeys(values))


# -- calls of a stand-in -----------------------------------------------------------------------------------------------


def _posed(model: Rehearses, sizes: list[tuple[int, int]], training: bool, limits: DeviceLimits) -> Wanted:
    """The problems that calls of the model pose."""
    import torch

    wanted = Wanted()
    try:
        with torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's on what is called: a call will have them
            stand_in, mode = _faked(model)
            with mode, recorder(wanted, "", limits):
                call_all(stand_in, sizes, training)
    except M2GenError:
        raise
    except Exception as error:  # of whatever stands in the model
        found = f"PyTorch cannot call it on fake tensors ({type(error).__name__}: {error})"
        do = "rehearse before it is wrapped, sharded or quantised, or leave it out"
        raise ProblemError(f"a rehearsal of a {type(model).__name__}", found, do) from error
    return wanted


def call_all(model: Any, sizes: Iterable[tuple[int, int]], training: bool) -> None:
    """Call `model`, made of fake tensors, in all ways that its users may. It is of no use afterwards."""
    import torch

    sizes = list(sizes)
    model.eval()
    with torch.no_grad():
        for length, batch in sizes:
            model._rehearsed_parts(length, batch)
        _shorten(model._rehearsed_layers())
        for length, batch in sizes:
            for _ in model._rehearsed_calls(length, batch):
                pass
    if training:
        model.train()
        with torch.enable_grad():
            for length, batch in sizes:
                for outputs in model._rehearsed_calls(length, batch):
                    _differentiate(outputs)


def _differentiate(outputs: tuple[torch.Tensor, ...]) -> None:
    """Backward from each output alone: where several are used, gradients are sums of these."""
    import torch

    for y in outputs:
        if y.requires_grad:
            torch.autograd.backward(y, torch.ones_like(y), retain_graph=y is not outputs[-1])


@contextmanager
def _undisturbed(model: Any) -> Iterator[torch.device]:
    """The device of the model's first parameter; random state and autocast's cache stay as they are."""
    import torch

    devices = [p.device for p in model.parameters()]
    if any(device.type == "meta" for device in devices):
        found = "some of its weights are away, on the meta device"
        raise ProblemError(f"a rehearsal of a {type(model).__name__}", found, "rehearse before they are offloaded")
    device = devices[0]
    cached = torch.is_autocast_cache_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_autocast_cache_enabled(False)  # it would keep copies of fake weights
        try:
            yield device
        finally:
            torch.set_autocast_cache_enabled(cached)


def _faked(model: Any) -> tuple[Any, Any]:
    """A copy of the model whose tensors are fake, with their mode. Its hooks do nothing: but that there are hooks
    matters, as what has one is called."""
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)  # what a closure holds may be real
    # nor are they copied, with all that they hold
    memo: dict[int, Any] = {id(hook): _nothing for hooks in _hooks(model) for hook in hooks.values()}
    with FakeCopyMode(mode):
        stand_in = copy.deepcopy(model, memo)
    for hooks in _hooks(stand_in):
        hooks.update(dict.fromkeys(hooks, _nothing))
    return stand_in, mode


def _hooks(model: Any) -> Iterator[dict[int, Any]]:
    return (getattr(part, name) for part in model.modules() for name in _HOOKS)


def _nothing(*_: object, **__: object) -> None:
    """A hook."""


def _shorten(layers: nn.ModuleList) -> None:
    """Of each run of layers that are alike leave three: the others' calls are those of the one in the middle."""
    runs: list[list[nn.Module]] = []
    kinds: list[object] = []
    for layer in layers:
        kind = _kind(layer)
        if not kinds or kind != kinds[-1]:
            kinds.append(kind)
            runs.append([])
        runs[-1].append(layer)
    left = [layer for run in runs for layer in (run if len(run) <= _ALIKE else (*run[: _ALIKE - 1], run[-1]))]
    layers._modules.clear()
    layers.extend(left)


def _kind(module: nn.Module) -> object:
    """What decides which problems a module poses: all but the values of its tensors."""
    held = {**module._parameters, **module._buffers}
    tensors = [
        (name, t if t is None else (type(t), t.shape, t.stride(), t.dtype, t.device, t.requires_grad))
        for name, t in held.items()
    ]
    rest = [(name, _told(value)) for name, value in vars(module).items() if name not in ("_parameters", "_buffers")]
    return type(module), tensors, rest, [(name, _kind(m)) for name, m in module.named_children()]


def _told(value: Any) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value != 0  # a rate, where zero is another path
    if isinstance(value, tuple):
        return tuple(_told(one) for one in value)
    return type(value), len(value) if isinstance(value, dict | list) else 0


# -- kernels -----------------------------------------------------------------------------------------------------------


def _compile(wanted: Wanted, limits: DeviceLimits) -> tuple[int, int, int]:
    """Plan every problem, compile all kernels together, bind every plan: numbers of kernels compiled, there, failed."""
    import torch

    from m2gen.runtime import executor
    from m2gen.runtime.measure import wisdom
    from m2gen.runtime.measure.ready import make_ready

    threads = torch.get_num_threads()
    for problem in wanted.problems:  # rigor "measure" gets to know more with every one
        executor.planned(problem, limits, threads)
    plans = [(executor.settled(problem, limits, threads), problem in wanted.trained) for problem in wanted.problems]
    made = make_ready(plans, limits)
    for problem in wanted.problems:
        executor.bound(problem, limits, threads, wisdom.generation())
    return made
