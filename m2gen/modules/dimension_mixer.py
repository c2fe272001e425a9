"""The dimension mixer: what stands in a Monarch Mixer layer where a transformer has its MLP.

Source: Monarch Mixer, arXiv 2310.12109: the channel step M4 sigma(K2 . (M3 x)) of section 3, and the gated form used in
M2-BERT.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules.autocast import autocasting
from m2gen.modules.linear import BlockDiagLinear, MonarchLinear
from m2gen.modules.parameters import Parameters
from m2gen.modules.plain import all_plain, plain
from m2gen.modules.values import being_traced, on_gpu
from m2gen.ops.blockdiag_linear import blockdiag_glu

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


_PARTS = (BlockDiagLinear, MonarchLinear, Parameters, nn.LayerNorm, nn.Dropout)
_IN_CACHE = 2**21  # hidden values, 8 MiB of float32, which stay in cache between the two products


class DimensionMixer(nn.Module):
    """x (..., d_model) -> (..., d_model), each position by itself, with Monarch matrices in place of dense ones.

    kind "glu" (M2-BERT):     f(x) = wo(dropout(activation(g) * h)) with g, h = split(gated_layers(x)); gated_layers
    maps d_model
                              to 2 expand d_model without bias, wo back with bias
    kind "plain" (the paper): f(x) = m4 activation(kernel . (m3 x)); kernel (expand d_model,) is elementwise, no biases;
    the
                              paper's square layer is expand=1
    norm "post": LN(f(x) + x) · "pre": x + f(LN(x)) · None: f(x) alone

    order 1 makes the matrices block-diagonal with `nblocks` blocks (as in M2-BERT), order 2 Monarch products of two
    factors. activation is "gelu" (exact), "relu", "silu", or None. With kind "glu", order 1 and norm "post" the
    parameter names are those of the published M2-BERT checkpoints: gated_layers.weight, wo.weight, wo.bias, layernorm.
    As blocks are contiguous, the halves of gated_layers come from the first and the last blocks, so gating is what
    joins them.

    Raises ProblemError for unknown choices and for sizes that nblocks does not divide.
    """

    def __init__(
        self,
        d_model: int,
        expand: int = 4,
        *,
        kind: str = "glu",
        order: int = 1,
        nblocks: int = 4,
        activation: str | None = "gelu",
        dropout: float = 0.0,
        norm: str | None = "post",
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        _check_choices(kind, order, activation, norm)
        self.kind, self.activation, self.norm = kind, activation, norm
        hidden = expand * d_model
        self.block_rows = max(64, _IN_CACHE // hidden // 64 * 64)
        self.dropout = nn.Dropout(dropout)
        self.layernorm: nn.LayerNorm | None = None if norm is None else nn.LayerNorm(d_model, eps=eps)
        if kind == "glu":
            self.gated_layers = _linear(d_model, 2 * hidden, order, nblocks, bias=False)
            self.wo = _linear(hidden, d_model, order, nblocks, bias=True)
        else:
            self.m3 = _linear(d_model, hidden, order, nblocks, bias=False)
            self.kernel = nn.Parameter(torch.ones(hidden))
            self.m4 = _linear(hidden, d_model, order, nblocks, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) -> (..., d_model), dtype as x.

        On a CPU with gradients off, rows are taken in blocks whose hidden values stay in cache, unless a layer has
        hooks or is not its plain self any more: such a one is called once, for x as it is.
        """
        lean = x.device.type == "cpu" and not on_gpu(x) and not torch.is_grad_enabled() and not being_traced()
        rows = x.reshape(-1, x.shape[-1]) if lean else x
        if not lean or rows.shape[0] <= self.block_rows or not all(all_plain(m, _PARTS) for m in self.children()):
            return self._forward(x)
        blocks = torch.split(rows, self.block_rows)
        first = self._forward(blocks[0])  # autocast has a say in its dtype
        out = first.new_empty(rows.shape)
        for into, block in zip(torch.split(out, self.block_rows), blocks, strict=True):
            into.copy_(first if block is blocks[0] else self._forward(block))
        return out.view(x.shape)

    def _forward(self, x: Tensor) -> Tensor:
        if self.layernorm is None:
            return self._mix(x)
        if self.norm == "pre":
            return self._mix(self.layernorm(x), x)
        out: Tensor = self.layernorm(self._mix(x, x))
        return out

    def _mix(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """f(x) + residual."""
        if self.kind == "glu":
            hidden, last = self._gated(x), self.wo
        else:
            hidden, last = self._activate(self.kernel.to(x.dtype) * self.m3(x)), self.m4
        hidden = self.dropout(hidden)
        # the layer's kernel adds, unless it is replaced, or hooks see its result, or autocast would round the residual
        if residual is not None and plain(last, BlockDiagLinear) and not autocasting(residual):
            fused: Tensor = last(hidden, residual)
            return fused
        out: Tensor = last(hidden)
        return out if residual is None else out + residual

    def _gated(self, x: Tensor) -> Tensor:
        layer = self.gated_layers
        if isinstance(layer, BlockDiagLinear) and layer.nblocks % 2 == 0 and _is_product(layer):
            return blockdiag_glu(x, layer.weight, self.activation)
        gate, value = layer(x).chunk(2, dim=-1)
        gated: Tensor = self._activate(gate) * value
        return gated

    def _activate(self, x: Tensor) -> Tensor:
        return x if self.activation is None else _ACTIVATIONS[self.activation](x)

    def extra_repr(self) -> str:
        return f"kind={self.kind}, activation={self.activation}, norm={self.norm}"


def _is_product(layer: BlockDiagLinear) -> bool:
    """Whether a product with its weight is all that `layer` does."""
    return layer.bias is None and layer.activation is None and plain(layer, BlockDiagLinear)


def _linear(n_in: int, n_out: int, order: int, nblocks: int, bias: bool) -> BlockDiagLinear | MonarchLinear:
    if order == 1:
        return BlockDiagLinear(n_in, n_out, nblocks, bias)
    return MonarchLinear(n_in, n_out, nblocks, order, bias)


def _check_choices(kind: str, order: int, activation: str | None, norm: str | None) -> None:
    choices = (
        ("kind", kind, ("glu", "plain")),
        ("order", order, (1, 2)),
        ("activation", activation, (*_ACTIVATIONS, None)),
        ("norm", norm, ("post", "pre", None)),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise ProblemError(f"DimensionMixer({name}={value!r})", "there is no such choice", f"use one of {allowed}")
