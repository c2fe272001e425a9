"""A causal mixer whose matrix is a Monarch, richer than a convolution (arXiv 2310.12109, section 4).

With the Monarch matrix M[i, j] = q_j(w_N^i) of a basis of polynomials, u -> M^-1 (M k . M u) multiplies polynomials.
It is causal when q_j has no power below j (so a product of q_i and q_j has none below i + j) and, for the first half
of the basis, no power at or above N / 2 (so that the product does not wrap). Then M = DFT T with a real lower
triangular T, block-diagonal in halves, and on the first half

    y = T^-1 ((T k) * (T u)),        * the ordinary causal convolution.

This module works in that form: everything is real, and the zero padding to N = 2 n happens inside the convolution.
The polynomial of j is a product over its digits, q_j(Z) = prod_a f_a(Z^(s_a)), where f_a depends on the digits up to
j_a: so T is a product of `order` permuted block-diagonal factors with lower triangular blocks, is applied by block
products and inverted by triangular block solves, O(order * n^(1 + 1 / order)) each, and is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules.autocast import no_autocast
from m2gen.modules.parameters import Parameters
from m2gen.modules.plain import readable
from m2gen.modules.tied import KeepsTies, tie
from m2gen.ops.fftconv import fftconv


@readable
class TriangularTransform(nn.Module):
    """The lower triangular T of size n = prod(bases), on the last axis; `bases` are the digit bases, lowest first.

    `weights[a]` is (s_a, b_a, b_a) with s_a = b_0 ... b_(a-1): a block for each value of the lower digits. Only its
    lower triangle is read, and its diagonal through exp, which keeps every block invertible; all zero is T = 1.
    (A sign of a diagonal entry is given up by that: it would leave the class unchanged up to signs of the basis.)
    """

    def __init__(self, bases: Sequence[int], deviation: float) -> None:
        super().__init__()
        self.bases, self.deviation = tuple(bases), deviation
        strides = [math.prod(self.bases[:a]) for a in range(len(self.bases))]
        shapes = [(s, b, b) for s, b in zip(strides, self.bases, strict=True)]
        self.weights = Parameters(nn.Parameter(torch.empty(shape)) for shape in shapes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the blocks anew, T - 1 of relative size `deviation`."""
        for weight in self.weights:
            # a row of b entries: the root of b keeps the size of T x - x at about `deviation` times x for every b
            nn.init.normal_(weight, std=self.deviation / math.sqrt(weight.shape[-1]))

    def blocks(self) -> list[Tensor]:
        """The lower triangular blocks (s_a, b_a, b_a), lowest digit first."""
        # no triangular solve exists in half precision
        wide = [w.to(torch.promote_types(w.dtype, torch.float32)) for w in self.weights()]
        return [w.tril(-1) + torch.diag_embed(w.diagonal(dim1=-2, dim2=-1).exp()) for w in wide]

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        """T x, or T^-1 x with `inverse`."""
        blocks = self.blocks()
        # T takes the highest digit first: its polynomial depends on all the lower digits, which are still those of x
        for block in blocks if inverse else reversed(blocks):
            x = on_digit(block, x, solve_lower if inverse else torch.matmul)
        return x

    def solve(self, y: Tensor) -> Tensor:
        """T^-1 y."""
        x: Tensor = self(y, inverse=True)
        return x


@readable
class CausalMonarch(KeepsTies):
    """y = T^-1 ((T k) * (T u)) for sequences of up to n, T triangular and learned (arXiv 2310.12109, section 4).

    Linear in u for a fixed filter, and causal, but not shift-invariant: dy/du is lower triangular, not Toeplitz. With
    `deviation=0` T starts as the identity and the module as the causal convolution with k.

    Args:
        n: the longest sequence.
        order: number of digits, hence of factors of T; ignored where `bases` are given.
        bases: digit bases, lowest first, product n. Default: `order` factors of n, as equal as possible.
        channels: give it to own the filter, a parameter (channels, n) decaying from the start; else pass k each time.
        deviation: size of T - 1 at the start, relative.
        tied: one T for filter, input and output, as in the paper's theorem; False learns three, which is causal too.

    T is shared by all channels. Inputs shorter than n are exact without more work: T, the convolution and T^-1 are all
    lower triangular, so the first L outputs read only the first L inputs, and zeros after them change nothing.
    T is applied and inverted in its parameters' dtype, in float32 at least, under autocast too; y has u's dtype. Its
    condition grows with the distance from the identity, and the solves lose digits accordingly.

    Raises:
        ProblemError: for n < 1, an order or bases that do not multiply to n, and a negative deviation.
    """

    def __init__(
        self,
        n: int,
        order: int = 2,
        bases: Sequence[int] | None = None,
        channels: int | None = None,
        *,
        deviation: float = 0.1,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.n = n
        self.bases = _digit_bases(n, order) if bases is None else _check_bases(n, bases)
        if deviation < 0:
            raise ProblemError(f"CausalMonarch of length {n}", f"deviation={deviation}", "use 0 or more")
        self.on_input = TriangularTransform(self.bases, deviation)
        # three modules even where their weights are one: functional_call and offloading know modules by one name
        with torch.device("meta") if tied else nullcontext():  # nothing is drawn for what the first one has
            self.on_filter = TriangularTransform(self.bases, deviation)
            self.on_output = TriangularTransform(self.bases, deviation)
        if tied:
            tie(self.on_filter, to=self.on_input)
            tie(self.on_output, to=self.on_input)
        self.k = None if channels is None else nn.Parameter(_decaying_filter(n, channels))

    @property
    def order(self) -> int:
        return len(self.bases)

    def forward(self, u: Tensor, k: Tensor | None = None) -> Tensor:
        """u (B, H, L) with L <= n; k (H, K), unless the module owns its filter; any floating dtypes.

        Taps of k beyond L act on nothing and are cut. Returns (B, H, L). Raises ProblemError for other shapes.
        """
        k = self._filter(u, k)
        length = u.shape[-1]
        k = k[:, :length]
        tk = self.on_filter(_pad(k, self.n))
        tu = self.on_input(_pad(u, self.n))
        y = self.on_output.solve(fftconv(tu, tk, mode="causal"))
        return y[..., :length].to(u.dtype)

    def _filter(self, u: Tensor, k: Tensor | None) -> Tensor:
        asked = f"CausalMonarch of length {self.n} on u of shape {tuple(u.shape)}"
        if u.ndim != 3 or not 1 <= u.shape[-1] <= self.n:
            raise ProblemError(asked, "not (B, H, L) with 1 <= L <= n", "give such a u, or build the module longer")
        if k is not None and self.k is not None:
            raise ProblemError(asked, "it owns a filter and k is given", "leave out k, or build it without channels")
        chosen = self.k if k is None else k
        if chosen is None:
            raise ProblemError(asked, "no filter", "pass k (H, K), or build the module with channels=H")
        if chosen.ndim != 2 or chosen.shape[0] != u.shape[1] or chosen.shape[1] < 1:
            raise ProblemError(
                asked, f"the filter has shape {tuple(chosen.shape)}", f"give k ({u.shape[1]}, K), K >= 1"
            )
        return chosen

    def extra_repr(self) -> str:
        return f"n={self.n}, bases={self.bases}, channels={None if self.k is None else self.k.shape[0]}"


# ---- the pieces -----------------------------------------------------------------------------------------------


def on_digit(block: Tensor, x: Tensor, act: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Act with the blocks (stride, b, b) on the digit of x (..., n) that has base b and the lower digits below it."""
    stride, base, _ = block.shape
    # autocast would multiply in half precision what is then solved in single
    with no_autocast(x):
        columns = x.to(block.dtype).reshape(-1, base, stride).permute(2, 1, 0)
        return act(block, columns).permute(2, 1, 0).reshape(x.shape)


def solve_lower(block: Tensor, columns: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(block, columns, upper=False)
    return solved


def _pad(x: Tensor, n: int) -> Tensor:
    return nn.functional.pad(x, (0, n - x.shape[-1]))


def _decaying_filter(n: int, channels: int) -> Tensor:
    """Noise under exponentials whose reach goes from a few positions to n over the channels, each of unit norm."""
    reach = torch.logspace(0, math.log10(n), channels)[:, None]
    k = torch.randn(channels, n) * torch.exp(-torch.arange(n) / reach)
    norms: Tensor = torch.linalg.vector_norm(k, dim=1, keepdim=True)
    return k / norms


def _digit_bases(n: int, order: int) -> tuple[int, ...]:
    """`order` factors of n, each the divisor nearest the root of what is left, in increasing order."""
    asked = f"CausalMonarch of length {n} and order {order}"
    if n < 1 or order < 1:
        raise ProblemError(asked, "not a size or not an order", "use n >= 1 and order >= 1")
    bases, rest = [], n
    for left in range(order, 1, -1):
        root = rest ** (1 / left)
        bases.append(min((d for d in range(1, rest + 1) if rest % d == 0), key=lambda d: abs(math.log(d / root))))
        rest //= bases[-1]
    bases.append(rest)
    if min(bases) == 1 and order > 1:
        raise ProblemError(
            asked, f"{n} has no {order} factors above 1", "pad n, lower the order, or give bases yourself"
        )
    return tuple(sorted(bases))


def _check_bases(n: int, bases: Sequence[int]) -> tuple[int, ...]:
    if n < 1 or not bases or min(bases) < 1 or math.prod(bases) != n:
        found = f"bases {tuple(bases)} with product {math.prod(bases)}"
        raise ProblemError(f"CausalMonarch of length {n}", found, f"give positive bases whose product is {n}")
    return tuple(bases)
