"""A model that was told its lengths compiles nothing when it is called at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import m2bert_tiny
import pytest
import torch
from rehearsed import BATCHES, LENGTHS, batches_of, forget, nothing_new, use
from small_models import NAMES, gpt, small
from torch import nn

import m2gen
from m2gen.ahead import rehearse as rehearsal
from m2gen.models import M2GPT, M2BertForMaskedLM, M2BertModel, M2GPTConfig
from m2gen.modules import DimensionMixer, MixerBlock, SequenceMixer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_compiled_afterwards(name: str, dtype: torch.dtype) -> None:
    model, given = small(name)
    model = model.to(dtype)
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    forget()
    done = model.rehearse(None if "pixel_values" in given else LENGTHS, BATCHES, training=True)
    assert done.problems and not done.failed
    assert done.compiled + done.there or (name, dtype) == ("ViT, Monarch", torch.bfloat16)  # by PyTorch's products
    with nothing_new():
        for batch in batches_of(model, given):
            use(model, batch)


@pytest.mark.parametrize("kind", [SequenceMixer, MixerBlock])
def test_modules(kind: type[nn.Module]) -> None:
    mixer = SequenceMixer(16, 24)
    module: Any = mixer if kind is SequenceMixer else MixerBlock(mixer, DimensionMixer(16, 2), prenorm=True)
    forget()
    module.rehearse((7, 24), 2, training=True)
    with nothing_new():
        for length in (7, 24):
            u, mask = torch.randn(2, length, 16, requires_grad=True), torch.arange(length).expand(2, -1) > 2
            for y in (module(u), module(u, mask)):
                y.square().sum().backward()
            with torch.no_grad():
                module(u)


def test_evaluation_alone_takes_fewer_kernels() -> None:
    model, given = small("M2-BERT, words")
    few, all_ = model.rehearse(20, 2), model.rehearse(20, 2, training=True)
    assert few.problems < all_.problems and few.there + few.compiled < all_.there + all_.compiled
    forget()
    m2gen.rehearse(model, 20, 2)
    with nothing_new():
        use(model, given, training=False)


def test_the_longest_without_a_length() -> None:
    model = gpt(1)
    forget()
    model.rehearse()
    with nothing_new(), torch.no_grad():
        model(torch.ones((1, 48), dtype=torch.long))


def test_lengths_share_kernels() -> None:
    model, _ = small("M2-BERT, words")
    model.rehearse(range(17, 21), 2, training=True)
    one, more = model.rehearse(20, 2, training=True), model.rehearse(range(17, 21), (2, 2), training=True)
    assert more.problems > one.problems and more.there == one.there and not more.compiled


def test_under_autocast() -> None:
    model, given = small("M2-BERT, words")
    forget()
    with torch.autocast("cpu", torch.bfloat16):
        model.rehearse(20, 2, training=True)
        with nothing_new():
            use(model, given)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, given = small("M2-BERT, words", layers=2)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    forget()
    model.rehearse(20, 2, training=True)
    with nothing_new():
        use(model, given)


def test_frozen_weights_and_gradients_of_few() -> None:
    """What is not trained has no kernels of gradients."""
    model, _ = small("M2-BERT, words", layers=2)
    all_ = model.rehearse(20, 2, training=True)
    model.bert.requires_grad_(False)
    assert model.rehearse(20, 2, training=True).problems < all_.problems


def test_many_layers_pose_what_three_do() -> None:
    """And layers that are not alike are all called."""
    model, given = small("M2-BERT, words", layers=9)
    layers = model.bert.encoder.layer
    layers[5].requires_grad_(False)
    layers[6].attention.out_linear = nn.Linear(32, 32, bias=False)
    stand_in, _ = rehearsal._faked(model)
    left = stand_in.bert.encoder.layer
    rehearsal._shorten(left)
    assert [part.attention.in_linear.weight.requires_grad for part in left] == [True, True, True, False, *[True] * 3]
    assert [part.attention.out_linear.bias is None for part in left] == [*[False] * 4, True, False, False]
    forget()
    model.rehearse(20, 2, training=True)
    assert len(layers) == 9
    with nothing_new():
        use(model, given)


def test_any_number_of_labels() -> None:
    model = m2bert_tiny.tiny(M2BertForMaskedLM, sparse_prediction=True, num_hidden_layers=1)
    ids = m2bert_tiny.tokens(4, 40)
    forget()
    model.rehearse(40, 4, training=True)
    with nothing_new(bind=False):  # the rows of the head are no size that could be told
        for count in (1, 7, 30, 129, 159):
            labels = torch.full_like(ids, -100)
            labels.view(-1)[:count] = 3
            model(ids, labels=labels).loss.backward()


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_embeddings_of_texts(pooling: str) -> None:
    model = m2bert_tiny.tiny(M2BertModel)
    forget()
    model.rehearse(20, 3)
    with nothing_new(), torch.no_grad():
        mask = torch.ones(3, 20, dtype=torch.long)
        mask[0, 9:] = 0
        model.embed(m2bert_tiny.tokens(3, 20), mask, pooling=pooling)


@pytest.mark.parametrize("options", [{}, {"causal": "monarch"}, {"expand": 2}], ids=str)
def test_generation(options: dict[str, Any]) -> None:
    """To the end of the longest text; and to any other, whose last convolutions are shorter but by the same kernels."""
    torch.manual_seed(0)
    model = M2GPT(M2GPTConfig(vocab_size=50, d_model=16, n_layers=2, max_length=300, **options)).eval()
    forget()
    model.rehearse((5, 150), 2)
    with nothing_new():
        for length in (5, 150):
            model.generate(torch.ones((2, length), dtype=torch.long), 301 - length)
    with nothing_new(bind=False):
        for length, count in ((5, 3), (5, 100), (150, 20), (150, 111)):
            model.generate(torch.ones((2, length), dtype=torch.long), count)


def with_lora(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=4))


def with_weight_norm(model: Any) -> Any:
    for block in (part for part in model.modules() if isinstance(part, MixerBlock)):
        nn.utils.parametrizations.weight_norm(block.attention.in_linear)
    return model


def in_8_bits(model: Any) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def prepared(model: Any) -> Any:
    """By accelerate: there is an autocast around its `forward`."""
    return pytest.importorskip("accelerate").Accelerator(cpu=True, mixed_precision="bf16").prepare(model)


@pytest.mark.parametrize("wrap", [with_lora, with_weight_norm, in_8_bits, prepared])
@pytest.mark.parametrize("name", ["M2-BERT, words", "M2-GPT"])
def test_models_as_others_change_them(name: str, wrap: Callable[[Any], Any]) -> None:
    model, given = small(name, layers=2)
    model = wrap(model)
    forget()
    model.rehearse(20, 2, training=wrap is not in_8_bits)
    with nothing_new():
        use(model, given, training=wrap is not in_8_bits)
