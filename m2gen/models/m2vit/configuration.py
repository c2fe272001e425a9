"""The configuration of M2-ViT and of the models its paper sets beside it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from m2gen.errors import ProblemError

_IMAGENET = {"num_labels": 1000}
_ATTENTION = {"mixer": "attention", "pooling": "cls", "position_embeddings": True}
_CIFAR = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hyena_emb_dim": 9,
    "hyena_filter_order": 32,
    "num_labels": 10,
}
_FASHION = {
    **_CIFAR,
    "image_size": 28,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 256,
}
_SMALL_ATTENTION = {"mixer": "attention", "mlp": "dense", "position_embeddings": True}

PRESETS: dict[str, dict[str, Any]] = {
    "M2-ViT-b": _IMAGENET,
    "HyenaViT-b": {**_IMAGENET, "mlp": "dense"},
    "ViT-b-Monarch": {**_IMAGENET, **_ATTENTION, "mlp": "monarch", "projections": "monarch"},
    "ViT-b": {**_IMAGENET, **_ATTENTION, "mlp": "dense"},
    "M2-ViT-cifar": _CIFAR,
    "ViT-cifar": {**_CIFAR, **_SMALL_ATTENTION},
    "M2-ViT-fashion": {**_FASHION, "hyena_filter_order": 16, "gated": True, "intermediate_size": 128},
    "ViT-fashion": {**_FASHION, **_SMALL_ATTENTION},
}

_CHOICES = {
    "mixer": ("m2", "attention"),
    "mlp": ("block_diagonal", "dense", "monarch"),
    "projections": ("dense", "monarch"),
    "pooling": ("mean", "cls"),
}


_SIZES = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "monarch_nblocks",
    "short_kernel",
    "hyena_filter_order",
)


class M2ViTConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes and choices of an M2-ViT. Default: M2-ViT-b for images of 224 x 224.

    `M2ViTConfig.preset(name)` gives the models of the paper's ImageNet table, M2-ViT-b, HyenaViT-b, ViT-b-Monarch and
    ViT-b, and small ones of the same kinds for 32 x 32 colour images (M2-ViT-cifar, ViT-cifar) and for 28 x 28 grey
    ones (M2-ViT-fashion, ViT-fashion), whose sizes are of our own choosing.

    image_size, patch_size, num_channels    square images, cut into square patches
    mixer                   what mixes patches: "m2", a gated long convolution, or "attention"
    mlp                     what mixes channels: "block_diagonal" (order-1 Monarch), "dense", or "monarch" (order 2)
    gated                   block-diagonal only: gated as in M2-BERT, half as many parameters again
    intermediate_size       width inside it, a multiple of hidden_size
    monarch_nblocks         blocks of every block-diagonal matrix
    projections             "dense" or "monarch": attention's four projections and the classifier; monarch_nblocks
                            then divides num_labels
    pooling                 what is classified: the "mean" over patches, or the state of a learned "cls" token before
                            them
    position_embeddings     whether a learned table is added to the patches
    bidirectional           long convolutions that see the patches on both sides
    residual_long_conv      a second long convolution beside the gated one, as in M2-BERT
    short_kernel            taps of the short convolution before the gates
    hyena_emb_dim, hyena_filter_order, hyena_inner_layers, hyena_w
                            of the filter network: features, width, inner layers and initial frequency
    hidden_dropout_prob     after the embeddings and inside the channel mixers
    drop_path_rate          stochastic depth: the last layer's probability to be left out for an image in training,
                            growing linearly from zero at the first layer

    What the paper (Monarch Mixer, arXiv 2310.12109, section 5.2 and appendix) leaves open, and what is chosen here:
    patches are one sequence, row by row, as in HyenaViT-b; convolutions are bidirectional, for an image has no past;
    one long convolution in a residual, pre-norm layer, as a second one would make M2-ViT-b 46.7M parameters where the
    table says 45M; filter networks of width 64 with one inner layer, which also fit both of the table's counts; no
    position embeddings and the mean over patches for M2-ViT and HyenaViT, a class token and position embeddings for the
    -b sizes with attention. ViT-b-Monarch has Monarch projections, MLPs and classifier: with a dense classifier it
    would have 33.5M parameters where the table says 33.0M.

    Raises ProblemError for sizes and choices that do not fit together.
    """

    model_type = "m2_vit"

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    mixer: str = "m2"
    mlp: str = "block_diagonal"
    gated: bool = False
    monarch_nblocks: int = 4
    projections: str = "dense"
    pooling: str = "mean"
    position_embeddings: bool = False
    bidirectional: bool = True
    residual_long_conv: bool = False
    short_kernel: int = 3
    hyena_emb_dim: int = 5
    hyena_filter_order: int = 64
    hyena_inner_layers: int = 1
    hyena_w: float = 10
    hidden_dropout_prob: float = 0.0
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                asked = f"an M2-ViT with {name}={getattr(self, name)!r}"
                raise ProblemError(asked, "there is no such choice", f"use one of {', '.join(allowed)}")
        self._check_sizes()
        if self.projections == "monarch" and self.mixer != "attention":
            raise ProblemError(
                "an M2-ViT with Monarch projections", "those of the long convolution are dense", "use attention"
            )
        if self.gated and self.mlp != "block_diagonal":
            raise ProblemError(f"an M2-ViT with mlp={self.mlp!r}, gated", "there is none", "use 'block_diagonal'")

    def _check_sizes(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ProblemError(f"an M2-ViT with {name}={value!r}", "it is no size", "use a whole number from 1 on")
        sizes = (
            ("image_size", "patch_size", "patches do not tile the image"),
            ("intermediate_size", "hidden_size", "it is not a multiple"),
        )
        for whole, part, found in sizes:
            if getattr(self, whole) % getattr(self, part):
                asked = f"an M2-ViT with {whole}={getattr(self, whole)} and {part}={getattr(self, part)}"
                raise ProblemError(asked, found, "make the first a multiple of the second")
        if self.mixer == "attention" and self.hidden_size % self.num_attention_heads:
            asked = f"{self.num_attention_heads} heads of attention on width {self.hidden_size}"
            raise ProblemError(asked, "the heads do not divide it", "use a divisor")
        for name in ("hidden_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                asked = f"an M2-ViT with {name}={getattr(self, name)}"
                raise ProblemError(asked, "it is a probability", "use [0, 1)")

    @property
    def num_patches(self) -> int:
        """Patches of an image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """The sequence's length: patches, and a class token where there is one."""
        return self.num_patches + (self.pooling == "cls")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> M2ViTConfig:
        """The configuration of that name, with `changes`. Raises ProblemError for another name."""
        if name not in PRESETS:
            raise ProblemError(f"the M2-ViT {name!r}", "there is no such preset", f"use one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})
