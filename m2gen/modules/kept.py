"""What modules keep from call to call in evaluation: checked by content, or declared to stay.

Values derived from parameters go stale when those change, and a change need not count a version: `.data`, a view of
numpy, another process, sharded parameters. So what is kept is compared, byte for byte, with a copy of what it was made
of, which on a CPU takes less than making it anew; or its user says that the weights stay (`keep_filters`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from m2gen.errors import ProblemError

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

_memcmp = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).memcmp
_memcmp.argtypes, _memcmp.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int


class Keeper(nn.Module):
    """A module that keeps what it derives from its weights: `keep`, `forget`, and acts that drop what is kept."""

    declared: tuple[int, ...] | None  # the lengths of `keep`, none of them for any; None where nothing was declared
    dropped: int  # how often, for those who keep what they made of this module's

    def __init__(self) -> None:
        super().__init__()
        self.declared, self.dropped = None, 0

    def stays(self, length: int) -> bool:
        """Whether what belongs to that length was declared to stay."""
        return self.declared is not None and (not self.declared or length in self.declared)

    def keep(self, *lengths: int) -> None:
        """See `keep_filters`."""
        for length in lengths:
            if not isinstance(length, int) or isinstance(length, bool) or length < 1:
                raise ProblemError(f"keep_filters of length {length!r}", "not a length", "give whole numbers from 1 on")
        self.drop()
        self.declared = lengths

    def forget(self) -> None:
        """See `forget_filters`."""
        self.drop()
        self.declared = None

    def drop(self) -> None:
        """Keep nothing that was derived so far."""
        self.dropped += 1

    def train(self, mode: bool = True) -> Self:
        """As of any module. What was kept is dropped where training begins."""
        if mode:
            self.drop()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.drop()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop()
        super()._load_from_state_dict(*args, **kwargs)


def keep_filters(module: nn.Module, *lengths: int) -> None:
    """Declare that the weights behind the long filters in `module` stay as they are: "do not check them again".

    In evaluation, filters are kept from call to call and checked by content, which costs a comparison of the filter
    networks' weights; on a GPU, where that would wait for the device, they are computed in every call. After this call
    they are kept without a check, and in compiled graphs, too: filters of each length in `lengths`, made now (their
    spectra at the first call); without any, of the first 8 lengths met. `train()`, `to()` and `load_state_dict` drop
    what is kept, other ways of writing to the weights do not: call this again, or `forget_filters`. Where a gradient
    of the weights is wanted, filters are computed as in training; a filter with a hook, an adapter or a
    parametrization on a part of it is computed in every call, and the log says so. Call this before `torch.compile`.

    A captured CUDA graph reads the filters that were kept when it was captured: capture it again once they are dropped.

    Raises:
        ProblemError: where nothing in `module` keeps filters, or they are shorter than one of the lengths.
    """
    for keeper in _keepers(module, "keep_filters"):
        keeper.keep(*lengths)


def forget_filters(module: nn.Module) -> None:
    """Drop all filters and spectra kept in `module`, and the declaration of `keep_filters`.

    Raises:
        ProblemError: where nothing in `module` keeps filters.
    """
    for keeper in _keepers(module, "forget_filters"):
        keeper.forget()


def _keepers(module: nn.Module, what: str) -> list[Keeper]:
    found = [part for part in module.modules() if isinstance(part, Keeper)]
    if not found:
        raise ProblemError(
            f"{what}({type(module).__name__})",
            "no module in it has long filters made of weights",
            "give a model with a HyenaFilter; for a filter of your own use m2gen.prepare_filter",
        )
    return found


class Checked(Generic[T]):
    """One value derived from tensors, kept as long as they hold the same bytes."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, list[Tensor], T] | None = None  # replaced as a whole: threads may share a model

    def get(self, key: Hashable, tensors: Sequence[Tensor], derive: Callable[[], T]) -> T:
        """`derive()`, or its earlier result if it came from the same `key` and from `tensors` with the same content;
        every time anew where the content of one cannot be compared, or would be slow to."""
        if not all([_comparable(t) for t in tensors]):  # noqa: C419  a list is faster
            self.forget()
            return derive()
        kept = self._kept
        if kept is None or kept[0] != key or not _equal(kept[1], tensors):
            self.forget()
            # copied first: a write meanwhile is then found at the next call
            copies = [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]
            kept = self._kept = (key, copies, derive())
        return kept[2]

    def forget(self) -> None:
        """Keep nothing."""
        self._kept = None


def values_suffice(tensors: Sequence[Tensor], compiling: bool = False) -> bool:
    """Whether what is derived from the tensors is asked for its values alone: no gradient, tangent or function
    transform follows it, and nothing writes down how it came about (a compiler may, where `compiling` says so)."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    if torch.compiler.is_compiling():
        return compiling
    return not (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
    )


def same_tensors(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether the two hold the same objects, whatever is in them."""
    return len(a) == len(b) and all([x is y for x, y in zip(a, b, strict=True)])  # noqa: C419


def _comparable(t: Tensor) -> bool:
    """Plain numbers in the memory of this process."""
    return (
        type(t) in (Tensor, nn.Parameter)
        and t.device.type == "cpu"
        and t.layout == torch.strided
        and not (t.is_neg() or t.is_conj())
        and t.untyped_storage().nbytes() >= (t.storage_offset() + t.numel()) * t.element_size()
    )


def _equal(copies: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    if len(copies) != len(tensors):
        return False
    for a, b in zip(copies, tensors, strict=True):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        b = b if b.is_contiguous() else b.detach().contiguous()
        if _memcmp(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size()):
            return False
    return True
