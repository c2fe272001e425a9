"""M2-ViT: image classification by gated long convolutions over patches and block-diagonal layers, without attention.

Source: Monarch Mixer, arXiv 2310.12109, section 5.2. One family with the models of its table: the long convolution may
be attention, the block-diagonal layers dense ones or Monarch products (`M2ViTConfig` says what was chosen where the
paper leaves it open).

Shapes: B batch, C channels, S image size, L patches (and a class token where there is one), d = hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import can_return_tuple

from m2gen.models.filters import Shares, owner, reset_filter_part
from m2gen.models.m2vit.configuration import M2ViTConfig
from m2gen.models.m2vit.layers import M2ViTEmbeddings, M2ViTLayer, classifier
from m2gen.models.options import IMAGES, IMAGES_ALONE, loss_options
from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.modules.linear import BlockDiagLinear, MonarchLinear, apply_linear

_RESET = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm, BlockDiagLinear, MonarchLinear)


class M2ViTPreTrainedModel(Shares):
    """What the M2-ViT models share: configuration and initialisation.

    Linear layers of every kind start as `nn.Linear` does, so that each passes on a third of its input's variance (at
    width 768 a standard deviation of 0.021), class token and positions normal with 0.02, the filters as their modules.
    """

    config_class = M2ViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # by rows: tables of positions are not told apart in half precision
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["filter_fn", "filter_fn2"]
    _no_split_modules: ClassVar[list[str]] = ["M2ViTEmbeddings", "M2ViTLayer"]

    def _init_weights(self, module: nn.Module) -> None:
        if reset_filter_part(module):
            return
        if isinstance(module := owner(self, module), _RESET):
            module.reset_parameters()
        elif isinstance(module, DimensionMixer) and module.kind == "plain":
            init.ones_(module.kernel)
        elif isinstance(module, M2ViTEmbeddings):
            for table in (module.cls_token, module.position_embeddings):
                if table is not None:
                    init.normal_(table, std=0.02)

    def _rehearsed_length(self) -> None:
        """None: images have the configuration's size."""

    def _rehearsed_layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.base_model.layers
        return layers

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        patches = self.get_input_embeddings()
        pixels = patches.projection.weight.new_zeros((batch, *patches.shape))
        yield tuple(y for y in self(pixels, return_dict=True).values() if isinstance(y, Tensor))


class M2ViTModel(M2ViTPreTrainedModel):
    """The encoder: `last_hidden_state` (B, L, d), after a last LayerNorm, and `pooler_output` (B, d), what is
    classified: the class token's state or the mean over patches."""

    def __init__(self, config: M2ViTConfig) -> None:
        super().__init__(config)
        self.embeddings = M2ViTEmbeddings(config)
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            M2ViTLayer(config, config.drop_path_rate * i / last) for i in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **options: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, C, S, S), floating.
            output_hidden_states: also `hidden_states`, the embeddings' output and every layer's.
            options: what callers pass to every model (`output_attentions`, `head_mask`, `input_ids`,
                `interpolate_pos_encoding`, ...): taken where it is None or False.

        Raises:
            ProblemError: for images of another shape than the model's, and for options that ask for what it does not
                have.
            TypeError: for other keywords.
        """
        loss_options("M2-ViT", options, IMAGES_ALONE, self.config)
        wanted = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        x = self.embeddings(pixel_values)
        states = [x]
        for layer in self.layers:
            x = layer(x)
            states = [*states, x] if wanted else states
        x = self.layernorm(x)
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=x[:, 0] if self.config.pooling == "cls" else x.mean(1),
            hidden_states=tuple(states) if wanted else None,
        )


class M2ViTForImageClassification(M2ViTPreTrainedModel):
    """The encoder and a linear classifier: `logits` (B, num_labels), and `loss` where labels are given."""

    def __init__(self, config: M2ViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = M2ViTModel(config)
        self.classifier = classifier(config)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> ImageClassifierOutput:
        """As `M2ViTModel.forward`; labels (B,) int64, the classes.

        The loss is the mean cross-entropy in nats (or what `config.problem_type` says); a trainer's
        `label_smoothing_factor` takes its place.
        """
        for_loss = loss_options("M2-ViT", options, IMAGES, self.config)
        out = self.vit(pixel_values, output_hidden_states, output_attentions=False, return_dict=True)
        logits = apply_linear(self.classifier, out.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **for_loss)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


def count_parameters(config: M2ViTConfig) -> int:
    """Parameters of the classification model of that configuration, which is not built (meta device)."""
    with torch.device("meta"):
        return sum(p.numel() for p in M2ViTForImageClassification(config).parameters())
