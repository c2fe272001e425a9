"""A filter that its user keeps: `prepare_filter`, for `fftconv` to take in place of k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.ops import _check as check
from m2gen.ops._register import has_tangent
from m2gen.runtime.bindings.kept_spectra import MOST as MOST  # modules keep as many
from m2gen.runtime.bindings.kept_spectra import KeptFilter

if TYPE_CHECKING:
    from typing_extensions import Self


class PreparedFilter:
    """A copy of a filter whose spectra are kept from call to call; made by `prepare_filter`.

    k, k_rev (H, K) and skip (H,) are copies of what was given: writing to the originals changes nothing here. Do not
    write to the copies. Different lengths or dtypes of u ask for different spectra: the first 8 of them are kept.
    """

    def __init__(self, k: Tensor, mode: str, k_rev: Tensor | None, skip: Tensor | None) -> None:
        """Takes the tensors over: the caller has no further use for them."""
        self.mode, self.k, self.k_rev, self.skip = mode, k, k_rev, skip
        self._kept = KeptFilter(self.k, self.k_rev, self.skip)

    @property
    def shape(self) -> torch.Size:
        """(H, K)."""
        return self.k.shape

    @property
    def device(self) -> torch.device:
        return self.k.device

    @property
    def nbytes(self) -> int:
        """Bytes of taps and spectra so far."""
        return self._kept.nbytes

    def to(self, device: torch.device | str) -> PreparedFilter:
        """This filter on `device`: itself, or a copy there."""
        if torch.device(device) == self.device:
            return self
        k_rev, skip = (None if t is None else t.to(device) for t in (self.k_rev, self.skip))
        return PreparedFilter(self.k.to(device), self.mode, k_rev, skip)

    def forget(self) -> None:
        """Drop the spectra; the next calls make them anew. A CUDA graph captured before is of no use then."""
        self._kept.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedFilter, (self.k, self.mode, self.k_rev, self.skip)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(_copy(self.k), self.mode, _copy(self.k_rev), _copy(self.skip))

    def __repr__(self) -> str:
        more = "".join(f", {name}" for name in ("k_rev", "skip") if getattr(self, name) is not None)
        return f"PreparedFilter({tuple(self.shape)}, {self.mode}{more}, {self.k.dtype}, {self.device})"


def prepare_filter(
    k: Tensor, *, mode: str = "causal", k_rev: Tensor | None = None, skip: Tensor | None = None
) -> PreparedFilter:
    """The filter of a convolution as it is now, to be given to `fftconv` in place of k: "these weights stay".

    `fftconv(u, k)` transforms the filter in every call, since nothing tells cheaply whether a tensor has been written
    to. A prepared filter is a copy that stays as it is: its spectra are made at the first call for each length, and
    kept. Prepare it again after a change of the weights.

    Args:
        k: (H, K), any floating dtype.
        mode: as of `fftconv`; k_rev: (H, K), in mode bidirectional and only there; skip: (H,).

    Returns:
        A `PreparedFilter` with copies on k's device. No gradient reaches it.

    Raises:
        ProblemError: for shapes, dtypes, devices or modes that do not fit together, and where gradients are on and one
            of the tensors wants one: it would be lost.
    """
    check.filter("prepare_filter", k, mode, k_rev, skip)
    for name, t in (("k", k), ("k_rev", k_rev), ("skip", skip)):
        if t is not None and (torch._C._functorch.is_functorch_wrapped_tensor(t) or has_tangent(t)):
            raise ProblemError(
                f"prepare_filter: {name}",
                "it belongs to a function transform or has a tangent, which would not reach it",
                "prepare the filter outside, or give fftconv the tensor itself",
            )
    wanting = [name for name, t in (("k", k), ("k_rev", k_rev), ("skip", skip)) if t is not None and t.requires_grad]
    if torch.is_grad_enabled() and wanting:
        raise ProblemError(
            f"prepare_filter: {wanting[0]}",
            "it requires a gradient, which would not reach it",
            "call it under torch.no_grad(), or give fftconv the tensor itself in training",
        )
    return PreparedFilter(_copy(k), mode, _copy(k_rev), _copy(skip))


def _copy(tensor: Any) -> Any:
    """An ordinary tensor, of use in any mode."""
    if tensor is None:
        return None
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
