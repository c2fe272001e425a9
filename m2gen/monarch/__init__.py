"""The algebra of Monarch matrices: `Monarch` and its permutations."""

from m2gen.monarch.algebra import Monarch
from m2gen.monarch.permutation import Permutation

__all__ = ["Monarch", "Permutation"]
