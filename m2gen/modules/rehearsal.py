"""Models that can be told their lengths: `model.rehearse(...)`, and what of a model it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from m2gen.ahead.rehearse import Rehearsal


class Rehearses:
    """A module that takes batches of sequences, and says how it is called on them."""

    def rehearse(
        self,
        lengths: int | Iterable[int] | None = None,
        batches: int | Iterable[int] = 1,
        *,
        training: bool = False,
    ) -> Rehearsal:
        """Compile what calls at every length and batch need, all of it at once: see `m2gen.rehearse`."""
        import m2gen  # the public function, above all layers

        return m2gen.rehearse(self, lengths, batches, training=training)

    def _rehearsed_length(self) -> int | None:
        """The longest input; None where inputs have one size and are not told apart by a length."""
        raise NotImplementedError

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        """Call this module in every way that poses problems of its own; of each call the tensors that it gives. Masks
        of padding pose none: they change no shape, dtype or strides."""
        raise NotImplementedError

    def _rehearsed_parts(self, length: int, batch: int) -> None:
        """Calls in evaluation alone that depend on how many layers there are: generation with a cache."""

    def _rehearsed_layers(self) -> nn.ModuleList:
        """The layers that are called one after the other: of many that are alike, a rehearsal calls three."""
        return nn.ModuleList()
