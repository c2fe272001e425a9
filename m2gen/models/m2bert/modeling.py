"""M2-BERT: a bidirectional encoder of gated long convolutions and block-diagonal gated layers, without attention.

Source: Monarch Mixer, arXiv 2310.12109, section 5.1. A layer is a `SequenceMixer` followed by a `DimensionMixer`;
embeddings, pooler and heads are BERT's. Parameter names and shapes are those of the published checkpoints.

Shapes: B batch, L tokens, d = hidden_size, V = vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from m2gen.errors import ProblemError
from m2gen.models.filters import reset_filter_part
from m2gen.models.m2bert.configuration import M2BertConfig
from m2gen.models.m2bert.layers import (
    M2BertEmbeddings,
    M2BertEncoder,
    M2BertMaskedLMHead,
    M2BertPooler,
    first_real,
    pool,
    real_tokens,
)
from m2gen.models.m2bert.pretrained import Pretrained
from m2gen.models.options import ENCODER, ENCODER_ALONE, check_labels, loss_options
from m2gen.modules.linear import BlockDiagLinear

IGNORE = -100  # a label that does not count


class M2BertPreTrainedModel(Pretrained):
    """What all M2-BERT models share: configuration, initialisation, loading.

    Initialised as the released code does: linear layers (the filters' too) and embeddings normal with standard
    deviation initializer_range, biases zero; block-diagonal layers as `BlockDiagLinear`; the rest as its module.
    """

    config_class = M2BertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    # by rows: tables of positions are not told apart in half precision
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["filter_fn", "filter_fn2"]
    _no_split_modules: ClassVar[list[str]] = ["MixerBlock"]

    def _init_weights(self, module: nn.Module) -> None:
        if reset_filter_part(module):
            return
        if isinstance(module, BlockDiagLinear | nn.Conv1d):
            module.reset_parameters()
        elif isinstance(module, M2BertEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[1])[None])
        else:
            super()._init_weights(module)

    def _rehearsed_length(self) -> int:
        return int(self.config.max_position_embeddings)

    def _rehearsed_layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.base_model.encoder.layer
        return layers

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        ids = torch.zeros((batch, length), dtype=torch.int64, device=self.get_input_embeddings().weight.device)
        yield tuple(y for y in self(ids, return_dict=True).values() if isinstance(y, Tensor))


class M2BertModel(M2BertPreTrainedModel):
    """The encoder: `last_hidden_state` (B, L, d) and, with a pooling layer, `pooler_output` (B, d)."""

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = M2BertEmbeddings(config)
        self.encoder = M2BertEncoder(config)
        self.pooler = M2BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode tokens.

        Args:
            input_ids: (B, L) int; or instead inputs_embeds (B, L, d), the word embeddings.
            attention_mask: (B, L), bool or integer, true at real tokens; None for all. Outputs at padded positions
                mean nothing, unless `config.mask_padding` is off.
            token_type_ids: (B, L), default 0.
            position_ids: (B, L), default 0 at a text's first real token, and counting on from there.
            output_hidden_states: also `hidden_states`, the embeddings' output and every layer's.
            options: what callers pass to every model (`output_attentions`, `head_mask`, `use_cache`, `labels`, ...):
                taken where it is None or False.

        Raises:
            ProblemError: for inputs longer than the model, masks of another shape or kind, both or no inputs, and for
                options that ask for what the model does not have.
            TypeError: for other keywords.
        """
        loss_options("M2-BERT", options, ENCODER_ALONE, self.config)
        words = self._words(input_ids, inputs_embeds)
        real = real_tokens(attention_mask, words.shape[:2])
        mask = real if self.config.mask_padding else None
        if position_ids is None and mask is not None:
            position_ids = (torch.arange(words.shape[1], device=mask.device) - first_real(mask)[:, None]).clamp(min=0)
        wanted = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        states = self.encoder(self.embeddings(words, token_type_ids, position_ids), mask, wanted)
        pooled = None
        if self.pooler is not None:
            # the released mean, too, is over real tokens only
            pooled = self.pooler(states[-1], real if self.pooler.pooling == "mean" else mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=states[-1], pooler_output=pooled, hidden_states=states if wanted else None
        )

    def _words(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ProblemError("M2-BERT", "input_ids and inputs_embeds together, or neither", "give one of them")
        length = (input_ids if input_ids is not None else inputs_embeds).shape[1]  # type: ignore[union-attr]
        if length > self.config.max_position_embeddings:
            raise ProblemError(
                f"M2-BERT on {length} tokens",
                f"it was made for at most {self.config.max_position_embeddings}",
                "cut the text, or load the model with a larger max_position_embeddings",
            )
        found: Tensor = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return found

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        pooling: str | None = None,
        dense: bool = True,
        normalize: bool = False,
    ) -> Tensor:
        """One vector for each text, (B, d): the pooled state of its "first" token or the "mean" over its real tokens.

        pooling      default: as the configuration says (`pool_all`)
        dense        through the pooler, tanh(dense(.)), as in the published embedding models; False: the state itself,
                     for models pretrained without a pooler
        normalize    to length 1

        Raises ProblemError where a dense layer is asked for and the model has none.
        """
        pooling = pooling or ("mean" if self.config.pool_all else "first")
        if dense and self.pooler is None:
            raise ProblemError("a dense embedding", "the model has no pooling layer", "use dense=False")
        states = self(input_ids, attention_mask, return_dict=True).last_hidden_state
        real = real_tokens(attention_mask, input_ids.shape)
        mask = real if self.config.mask_padding or pooling == "mean" else None
        layer = self.pooler if dense else None
        pooled = pool(states, mask, pooling) if layer is None else layer(states, mask, pooling)
        return F.normalize(pooled, dim=-1) if normalize else pooled


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """The encoder with BERT's masked-LM head: `logits` (B, L, V), and `loss` where labels are given."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config, add_pooling_layer=False)
        self.cls = M2BertMaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.cls.predictions.decoder = value

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        yield from super()._rehearsed_calls(length, batch)
        if self.config.sparse_prediction:  # any number of labels: kernels change at a few of them
            like = self.get_input_embeddings().weight[0]
            states = self.bert.embeddings(like.expand(batch, length, -1), None, None).flatten(0, 1).detach()
            for rows in (1 << i for i in range((batch * length).bit_length())):
                yield (self.cls(states[:rows].requires_grad_()),)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """As `M2BertModel.forward`; labels (B, L), the true words, or -100 where none is asked for.

        The loss is the mean cross-entropy in nats; a trainer may pass `num_items_in_batch`, the number to divide by.
        Raises ProblemError for labels of another shape, too.
        """
        for_loss = loss_options("M2-BERT", options, ENCODER, self.config)
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_hidden_states,
            output_attentions=False,  # asked for above
            return_dict=True,
        )
        states = out.last_hidden_state
        check_labels(labels, tuple(states.shape[:2]))
        if labels is not None and self.config.sparse_prediction:
            states, labels = states[labels != IGNORE], labels[labels != IGNORE]
        logits = self.cls(states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **for_loss)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


@dataclass
class M2BertClassifierOutput(SequenceClassifierOutput):  # type: ignore[misc]
    """`sentence_embedding` (B, d) is the pooled vector: users of the retrieval models read it here."""

    sentence_embedding: Tensor | None = None


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """The encoder, its pooler and a linear classifier: `logits` (B, num_labels), and `loss` where labels are given."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = M2BertModel(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> M2BertClassifierOutput:
        """As `M2BertModel.forward`; labels (B,) of classes or numbers, or (B, num_labels) for several at once.

        The loss is what `config.problem_type` says, or what the labels' kind suggests: cross-entropy, mean square, or
        binary cross-entropy.
        """
        for_loss = loss_options("M2-BERT", options, ENCODER, self.config)
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_hidden_states,
            output_attentions=False,  # asked for above
            return_dict=True,
        )
        logits = self.classifier(self.dropout(out.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **for_loss)
        return M2BertClassifierOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, sentence_embedding=out.pooler_output
        )
