"""What specs of C++ kernels that work on vectors have in common."""

from __future__ import annotations

from m2gen.kernels.spec import Resources


class Vectors:
    """Of a spec with `dtype`, that of the tensors, and `vector_bytes`: float32 arithmetic for 16 bits."""

    __slots__ = ()
    dtype: str
    vector_bytes: int

    @property
    def real_bytes(self) -> int:
        """Of a number in the arithmetic."""
        return 8 if self.dtype == "fp64" else 4

    @property
    def vector(self) -> int:
        """Numbers in a vector."""
        return self.vector_bytes // self.real_bytes

    def resources(self) -> Resources:
        return Resources(shared_bytes=0, threads=1)
