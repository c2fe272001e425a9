"""A list of parameters that is called for them."""

from __future__ import annotations

from torch import Tensor, nn

from m2gen.modules.plain import readable


@readable
class Parameters(nn.ParameterList):
    """`nn.ParameterList`, with its names; calling it gives its tensors.

    Hooks that bring the tensors of a module when it is called (offloading) or change them (pruning) see to a list only
    where somebody calls it.
    """

    __call__ = nn.Module.__call__  # a ParameterList's own refuses

    def forward(self) -> tuple[Tensor, ...]:
        """The tensors, in order."""
        return tuple(self)
