"""Dense layers, block-diagonal ones (Monarch of order 1) and Monarch ones of order two or more.

Source: Monarch, arXiv 2204.00595, and Monarch Mixer, arXiv 2310.12109.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.log import fallback
from m2gen.modules.parameters import Parameters
from m2gen.modules.plain import plain, readable
from m2gen.modules.values import being_traced, on_gpu
from m2gen.monarch import Monarch
from m2gen.ops.blockdiag_linear import blockdiag_linear, by_library
from m2gen.ops.gate import ACTIVATIONS
from m2gen.ops.monarch_matmul import inner_widths, monarch_matmul
from m2gen.ops.sizes import fewest_blocks, planned_factors
from m2gen.ops.turn import turn

if TYPE_CHECKING:
    from typing_extensions import Self


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), x (..., in_features) -> (..., out_features); for a plain `nn.Linear` it is `dense_linear`.

    Whatever else stands in its place (an adapter, quantised weights) or around it (hooks, offloading) is called.
    """
    if plain(layer, nn.Linear):
        return dense_linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    out: Tensor = layer(x)
    return out


def project_first(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """W x^T + b of all positions, channel by channel in memory, (out, B, L): h (B, out, L) and the bias b that it still
    lacks, or None. x (B, L, in).

    A matrix product gives either layout at the same cost; the bias, which in this layout it cannot add in the same
    pass, is left to what reads h. Whatever stands in a plain `nn.Linear`'s place is called, and its result turned.
    """
    if not plain(layer, nn.Linear):
        return turn(layer(x), first=True), None
    batch, length, width = x.shape
    h = torch.mm(layer.weight, x.reshape(batch * length, width).t())  # type: ignore[arg-type]
    return h.view(h.shape[0], batch, length).transpose(0, 1), layer.bias  # type: ignore[return-value]


def project_back(layer: nn.Module, y: Tensor) -> Tensor:
    """layer(y^T), y (B, in, L) -> (B, L, out): for a plain `nn.Linear` a product that reads y as it lies in memory, in
    one piece where its rows lie channel by channel."""
    if not plain(layer, nn.Linear):
        out: Tensor = layer(y.transpose(1, 2))
        return out
    batch, width, length = y.shape
    rows = y.transpose(0, 1).reshape(width, batch * length).t()
    out = nn.functional.linear(rows, layer.weight, layer.bias)  # type: ignore[arg-type]
    return out.view(batch, length, out.shape[1])


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in_features), weight (out_features, in_features) -> (..., out_features): `nn.functional.linear`, on a CPU
    by m2gen's own product, a block-diagonal one with a single block.

    On a processor that PyTorch's library does not know well it is twice as fast in float32 and float64. In 16 bits it
    is m2gen's where the planner says so, on processors without units for them, and no graph is compiled. On any other
    device, under autocast and for other dtypes it is PyTorch's.

    In float32 and float64 a row has the same bits in any company, but for a single token of a single text,
    (1, 1, in_features), which is left to PyTorch's library (not where a graph is compiled).
    """
    wide = x.dtype in (torch.float32, torch.float64) and x.dtype == weight.dtype
    # one token of one text, (1, 1, in_features), is a step of generation, too short for an op of our own
    step = not torch.compiler.is_compiling() and x.dim() > 2 and x.numel() == x.shape[-1]
    if (
        x.device.type != "cpu"
        or on_gpu(x)
        or step
        or torch.is_autocast_enabled("cpu")
        or not (wide or _widened(x, weight, bias))
    ):
        return nn.functional.linear(x, weight, bias)
    return blockdiag_linear(x, weight[None], bias)


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a product in 16 bits is planned as generated code: where a processor has no units for it."""
    fits = x.dtype in (torch.float16, torch.bfloat16) and x.dtype == weight.dtype and x.shape[-1:] == weight.shape[1:]
    return fits and not being_traced() and not by_library(x, weight[None], bias)


@readable
class BlockDiagLinear(nn.Module):
    """y = activation(W x + bias) with W block-diagonal: `nblocks` dense blocks, 1/nblocks of a dense layer's
    parameters. `forward(x, residual)` adds a residual of y's shape at the end, in the same kernel.

    x (..., in_features) -> y (..., out_features), dtype as x. Parameters: `weight` (nblocks, out_features / nblocks,
    in_features / nblocks) and `bias` (out_features,) or None. `activation` is None, "gelu" (exact), "relu" or "silu".

    Initialised as `nn.Linear` is (Kaiming-uniform with the dense fan-in), times sqrt(dense size / blocked size) =
    sqrt(nblocks): each output sums nblocks times fewer terms, so its variance stays that of a dense layer.

    nblocks="auto" asks the planner for the device at hand: the fewest blocks, so the most parameters, that cost at most
    a tenth more than the fastest number of them at 4096 rows of float32. Another device may give another number: say it
    where weights are to be loaded elsewhere.

    Raises ProblemError where nblocks does not divide both sizes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int | Literal["auto"] = 4,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(filter(None, ACTIVATIONS))
            raise ProblemError(f"BlockDiagLinear(activation={activation!r})", "it is not known", f"use None or {known}")
        if nblocks == "auto":
            nblocks = fewest_blocks(in_features, out_features)
            _tell_dense(nblocks == 1 and min(in_features, out_features) > 1, in_features, out_features)
        _check_count(f"BlockDiagLinear({in_features}, {out_features}, nblocks={nblocks!r})", "nblocks", nblocks)
        if nblocks < 1 or in_features % nblocks or out_features % nblocks:
            raise ProblemError(
                f"BlockDiagLinear({in_features}, {out_features}, nblocks={nblocks})",
                "the number of blocks does not divide both sizes",
                f"use a divisor of {math.gcd(in_features, out_features)}",
            )
        self.in_features, self.out_features, self.nblocks = in_features, out_features, nblocks
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(nblocks, out_features // nblocks, in_features // nblocks))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights and biases."""
        dense_bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -dense_bound * math.sqrt(self.nblocks), dense_bound * math.sqrt(self.nblocks))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -dense_bound, dense_bound)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in_features) -> (..., out_features), that of `residual`."""
        y: Tensor = blockdiag_linear(x, self.weight, self.bias, self.activation, residual)
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, nblocks={self.nblocks}, bias={self.bias is not None}, "
            f"activation={self.activation}"
        )


@readable
class MonarchLinear(nn.Module):
    """y = M x + bias with M a Monarch matrix of `order` block-diagonal factors, as in `m2gen.monarch_matmul`.

    x (..., in_features) -> y (..., out_features), dtype as x. Parameters: `factors.0`, applied first, to
    `factors.{order - 1}`, each (nblocks, block_out, block_in), and `bias` (out_features,) or None. Between the factors
    the vector has min(in_features, out_features) entries.

    nblocks is one number for all factors or a sequence with one each. The square Monarch of arXiv 2310.12109, section
    3, with n = r^order has nblocks = n / r in every factor; the two-factor layers of arXiv 2204.00595 have 4.

    Initialised uniform with variance 3^(-1 / order) / block_in in each factor: block_in terms are summed at every
    stage, so the output's variance is 1/3 of the input's, that of `nn.Linear` with its default initialisation.

    order="auto" asks the planner for the device at hand: the order and the blocks that are estimated fastest at 4096
    rows of float32 (`m2gen plan "monarch in=.. out=.. rows=4096"` shows them all), whatever nblocks says. Another
    device may give others: say them where weights are to be loaded elsewhere.

    Raises ProblemError where the blocks do not fit the sizes or each other.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int | Sequence[int] = 4,
        order: int | Literal["auto"] = 2,
        bias: bool = True,
    ) -> None:
        super().__init__()
        asked = f"MonarchLinear({in_features}, {out_features}, nblocks={nblocks!r}, order={order!r})"
        if order == "auto":
            shapes = planned_factors(in_features, out_features)
            _tell_dense(len(shapes) == 1 and min(in_features, out_features) > 1, in_features, out_features)
        else:
            _check_no_word(asked, nblocks)
            _check_count(asked, "order", order)
            shapes = _factor_shapes(in_features, out_features, nblocks, order)
        self.in_features, self.out_features, self.order = in_features, out_features, len(shapes)
        self.factors = Parameters(nn.Parameter(torch.empty(shape)) for shape in shapes)
        inner_widths(shapes)  # raises now, not at the first call, if the blocks do not interleave
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new factors and biases."""
        for factor in self.factors:
            variance = 3 ** (-1 / self.order) / factor.shape[2]
            bound = math.sqrt(3 * variance)
            nn.init.uniform_(factor, -bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_linear(cls, linear: nn.Linear, nblocks: int | tuple[int, int] = 4) -> Self:
        """The order-2 layer whose matrix is nearest to a dense layer's, in the Frobenius norm, and with its bias.

        `Monarch.from_dense(linear.weight, nblocks)` gives the distance as well. Works in the weight's dtype and device.
        """
        n_out, n_in = linear.weight.shape
        layer = cls(n_in, n_out, nblocks, order=2, bias=linear.bias is not None)
        layer.to(device=linear.weight.device, dtype=linear.weight.dtype)
        monarch, _ = Monarch.from_dense(linear.weight, nblocks, inner=min(n_in, n_out))
        with torch.no_grad():
            for mine, nearest in zip(layer.factors, monarch.factors, strict=True):
                mine.copy_(nearest)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        y: Tensor = monarch_matmul(x, self.factors())
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, order={self.order}, bias={self.bias is not None}"


def _check_count(asked: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or (name == "order" and value < 1):
        raise ProblemError(asked, f"{name} is {value!r}", f'give a whole number from 1 on, or {name}="auto"')


def _check_no_word(asked: str, nblocks: object) -> None:
    if isinstance(nblocks, str):
        raise ProblemError(asked, f"nblocks is {nblocks!r}", 'give numbers, or order="auto", which finds both')


def _tell_dense(dense: bool, n_in: int, n_out: int) -> None:
    if dense:
        fallback(f"a layer of {n_in} to {n_out} is planned as one dense block: no division into blocks is faster")


def _factor_shapes(n_in: int, n_out: int, nblocks: int | Sequence[int], order: int) -> list[tuple[int, int, int]]:
    counts = [nblocks] * order if isinstance(nblocks, int) else list(nblocks)
    asked = f"MonarchLinear({n_in}, {n_out}, nblocks={nblocks}, order={order})"
    if order < 1 or len(counts) != order:
        raise ProblemError(asked, f"{len(counts)} block counts", "give one for every factor, or one number for all")
    sizes = [n_in, *[min(n_in, n_out)] * (order - 1), n_out]
    for count, size_in, size_out in zip(counts, sizes, sizes[1:], strict=False):
        if count < 1 or size_in % count or size_out % count:
            found = f"{count} blocks do not divide a factor of {size_out} x {size_in}"
            raise ProblemError(asked, found, f"use a divisor of {math.gcd(size_in, size_out)}")
    return [(c, o // c, i // c) for c, i, o in zip(counts, sizes, sizes[1:], strict=False)]
