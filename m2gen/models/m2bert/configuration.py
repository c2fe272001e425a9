"""The configuration of M2-BERT, with the field names of the published config.json files."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from m2gen.errors import ProblemError

_RETRIEVAL = {"hidden_size": 768, "intermediate_size": 3072}

PRESETS: dict[str, dict[str, int]] = {
    "80M": {"hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 128},
    "110M": {"hidden_size": 960, "intermediate_size": 3840, "max_position_embeddings": 128},
    "260M": {"hidden_size": 1536, "intermediate_size": 6144, "max_position_embeddings": 128},
    "341M": {"hidden_size": 1792, "intermediate_size": 7168, "max_position_embeddings": 128},
    "80M-2k-retrieval": {**_RETRIEVAL, "max_position_embeddings": 2048},
    "80M-8k-retrieval": {**_RETRIEVAL, "max_position_embeddings": 8192},
    "80M-32k-retrieval": {**_RETRIEVAL, "max_position_embeddings": 32768},
}

# what the published files may ask for and these models do not have
_ONLY = {
    "hidden_act": "gelu",
    "use_glu_mlp": True,
    "use_monarch_mlp": True,
    "use_positional_encodings": True,
    "monarch_mixer_sequence_mixing": True,
}


class M2BertConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes and choices of an M2-BERT. Default: the published 80M model for 128 tokens.

    `M2BertConfig.preset(name)` gives the published sizes: 80M, 110M, 260M, 341M (all of 12 layers, for 128 tokens; the
    second has 115.6 million parameters in truth), and 80M-2k-retrieval, 80M-8k-retrieval, 80M-32k-retrieval.

    max_position_embeddings     the longest input, and the length of the filters
    intermediate_size           width inside the dimension mixer, a multiple of hidden_size
    monarch_mlp_nblocks         blocks of its block-diagonal matrices
    bidirectional               long convolutions that see both sides
    residual_long_conv          the second long convolution, in the place of a residual connection
    hyena_emb_dim, hyena_filter_order, hyena_w, hyena_w_mod
                                of the filter network: features, width, initial frequency and its fixed factor
    hyena_training_additions    a LayerNorm on the sequence mixer's input, as in the published 80M checkpoint
    pool_all                    pool by the mean over real tokens, not by the first one
    mask_padding                True: what stands at padded positions (left, right or between) reaches no real token, so
                                a text gives the same result alone and in any batch. False: as released, where padding
                                is read like text; the released retrieval models are used padded to their full length.
    sparse_prediction           masked LM with labels: logits only of the positions that have one, (n, vocab_size)
    num_attention_heads         without meaning, as there is no attention; tools such as adapters of prompts ask for it

    The rest are those of BERT. Raises ProblemError for choices that published files may name and these models have not:
    another activation, dense or ungated MLPs, ALiBi, attention.

    Source: Monarch Mixer, arXiv 2310.12109, section 5.1; names and sizes of the published configurations.
    """

    model_type = "m2_bert"
    # predictions of a trainer are then the logits alone, as metrics expect them
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["sentence_embedding"]

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 1
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 128
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    use_glu_mlp: bool = True
    use_monarch_mlp: bool = True
    monarch_mlp_nblocks: int = 4
    use_positional_encodings: bool = True
    monarch_mixer_sequence_mixing: bool = True
    residual_long_conv: bool = True
    bidirectional: bool = True
    hyena_emb_dim: int = 5
    hyena_filter_order: int = 128
    hyena_w: float = 10
    hyena_w_mod: float = 1
    hyena_training_additions: bool = False
    long_conv_l_max: int | None = None
    pool_all: bool = False
    mask_padding: bool = True
    sparse_prediction: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.long_conv_l_max = self.max_position_embeddings  # published files carry the same number twice
        for name, value in _ONLY.items():
            if getattr(self, name) != value:
                raise ProblemError(f"an M2-BERT with {name}={getattr(self, name)!r}", "there is none", f"use {value!r}")
        if self.hidden_size < 1 or self.intermediate_size % self.hidden_size:
            raise ProblemError(
                f"an M2-BERT of width {self.hidden_size}",
                f"intermediate_size={self.intermediate_size} is not a multiple of it",
                "use a multiple, 4 times in the published models",
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> M2BertConfig:
        """The configuration of a published model, with `changes`. Raises ProblemError for another name."""
        if name not in PRESETS:
            raise ProblemError(f"the M2-BERT {name!r}", "there is no such preset", f"use one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})
