"""Published M2-BERT checkpoints: exactly their names and shapes, in every dress they come in, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from m2bert_tiny import TINY, tiny, tokens
from safetensors import safe_open
from torch import Tensor
from transcription import masked_lm
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from m2gen.errors import M2GenError, ProblemError
from m2gen.models import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from m2gen.models.m2bert import checkpoints

IDS = tokens(2, 40)
State = dict[str, Tensor]


def names_of_the_published_80m(layers: int = 12, d: int = 768, vocabulary: int = 30522, n: int = 128) -> dict[str, Any]:
    """Every name and shape of a published masked-LM file."""
    network: dict[str, Any] = {"0.weight": (128, 5), "6.weight": (d, 128)}
    network |= {f"{i}.weight": (128, 128) for i in (2, 4)} | {f"{i}.bias": (128,) for i in (0, 2, 4)}
    network |= {f"{i}.freq": (1, 128) for i in (1, 3, 5)}
    filter_fn: dict[str, Any] = {"bias": (d,), "pos_emb.z": (1, n, 5), "pos_emb.t": (1, n, 1)}
    filter_fn |= {"modulation.deltas": (1, 1, d)}
    filter_fn |= {f"implicit_filter{rev}.{k}": v for rev in ("", "_rev") for k, v in network.items()}
    layer: dict[str, Any] = {
        "attention.in_linear.weight": (3 * d, d),
        "attention.in_linear.bias": (3 * d,),
        "attention.short_filter.weight": (3 * d, 1, 3),
        "attention.short_filter.bias": (3 * d,),
        "attention.out_linear.weight": (d, d),
        "attention.out_linear.bias": (d,),
        "mlp.gated_layers.weight": (4, 2 * d, d // 4),
        "mlp.wo.weight": (4, d // 4, d),
        "mlp.wo.bias": (d,),
        "mlp.layernorm.weight": (d,),
        "mlp.layernorm.bias": (d,),
    }
    layer |= {f"attention.{f}.{k}": v for f in ("filter_fn", "filter_fn2") for k, v in filter_fn.items()}
    names: dict[str, Any] = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, d),
        "bert.embeddings.position_embeddings.weight": (n, d),
        "bert.embeddings.token_type_embeddings.weight": (2, d),
        "bert.embeddings.LayerNorm.weight": (d,),
        "bert.embeddings.LayerNorm.bias": (d,),
        "bert.embeddings.position_ids": (1, n),
        "cls.predictions.transform.dense.weight": (d, d),
        "cls.predictions.transform.dense.bias": (d,),
        "cls.predictions.transform.LayerNorm.weight": (d,),
        "cls.predictions.transform.LayerNorm.bias": (d,),
        "cls.predictions.decoder.weight": (vocabulary, d),
        "cls.predictions.decoder.bias": (vocabulary,),
    }
    return names | {f"bert.encoder.layer.{i}.{k}": v for i in range(layers) for k, v in layer.items()}


def published_file(d: int = 32, n: int = 64, vocabulary: int = 90, layers: int = 2) -> State:
    """A file with exactly the published names and shapes, made without m2gen: shared tensors under all their names."""
    g = torch.Generator().manual_seed(3)
    state: State = {}
    for name, shape in names_of_the_published_80m(layers, d, vocabulary, n).items():
        state[name] = 0.1 * torch.randn(shape, generator=g)
        if name.endswith("orm.weight"):
            state[name] += 1
        owner = name.split(".implicit_filter")[0]
        if name.endswith(".freq"):
            state[name] = state.setdefault(f"{owner}.implicit_filter.1.freq", 10 + state[name])
        if name.endswith("pos_emb.t"):
            state[name] = torch.linspace(0, 1, n)[None, :, None]
        if name.endswith("deltas"):
            state[name] = torch.linspace(-3, -15, d)[None, None]
    state["bert.embeddings.position_ids"] = torch.arange(n)[None]
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    return state


def config(**changes: Any) -> M2BertConfig:
    return M2BertConfig(**{**TINY, "hyena_filter_order": 128, **changes})


def shapes(state: State) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def same(found: State, want: State) -> None:
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor), name


def folder(path: Path, state: State, settings: M2BertConfig, name: str = "model.safetensors") -> Path:
    """What the Hub would hold: weights and a config.json."""
    path.mkdir(exist_ok=True)
    checkpoints.write(state, path / name)
    settings.save_pretrained(path)
    return path


# -- names, shapes, round trips ----------------------------------------------------------------------------------------


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = M2BertForMaskedLM(M2BertConfig())
    assert shapes(model.state_dict()) == names_of_the_published_80m()
    with torch.device("meta"):
        other = M2BertForSequenceClassification(M2BertConfig(num_labels=3, hyena_training_additions=True))
    more = shapes(other.state_dict()).items() - names_of_the_published_80m().items()
    layernorms = {
        (f"bert.encoder.layer.{i}.attention.layernorm.{w}", (768,)) for i in range(12) for w in ("weight", "bias")
    }
    pooler = {("bert.pooler.dense.weight", (768, 768)), ("bert.pooler.dense.bias", (768,))}
    assert more == layernorms | pooler | {("classifier.weight", (3, 768)), ("classifier.bias", (3,))}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_round_trip_through_a_folder(tmp_path: Path, name: str) -> None:
    """Read as published, saved as published: the same tensors; and what it computes is what the file says."""
    state = published_file()
    model, report = M2BertForMaskedLM.from_pretrained(
        folder(tmp_path / "in", state, config(), name), output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    same(model.state_dict(), state)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits.double(), masked_lm(state, IDS), rtol=0, atol=1e-4)
    model.save_published(tmp_path / name)
    same(checkpoints.read(tmp_path / name), state)


def test_round_trip_in_the_conventions_of_transformers(tmp_path: Path) -> None:
    model = M2BertForMaskedLM(config())
    model.load_state_dict(published_file(), strict=True)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    dropped = model.state_dict().keys() - stored
    assert (
        dropped == {"cls.predictions.decoder.weight"} | {n for n in model.state_dict() if n.endswith("freq")} - stored
    )
    assert sum(n.endswith("freq") for n in stored) == 4, "one for each filter"
    again, report = M2BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    same(again.state_dict(), model.state_dict())
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    networks = again.bert.encoder.layer[1].attention.filter_fn
    assert networks.implicit_filter_rev[5].freq is networks.implicit_filter[1].freq
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "m2_bert"


def test_auto_classes(tmp_path: Path) -> None:
    tiny(M2BertForMaskedLM).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), M2BertConfig)
    for auto, cls in (
        (AutoModel, M2BertModel),
        (AutoModelForMaskedLM, M2BertForMaskedLM),
        (AutoModelForSequenceClassification, M2BertForSequenceClassification),
    ):
        model = auto.from_pretrained(tmp_path, dtype=torch.bfloat16, max_position_embeddings=100)
        assert type(model) is cls
        assert model.config.max_position_embeddings == 100
        assert model.dtype == torch.bfloat16 and not model.training
        assert model.name_or_path == str(tmp_path)
        encoder = model if cls is M2BertModel else model.bert
        assert encoder.encoder.layer[0].attention.filter_fn.pos_emb.z.dtype == torch.float32
        assert encoder(tokens(1, 100)).last_hidden_state.shape == (1, 100, 32)


def test_half_precision_files_keep_positions(tmp_path: Path) -> None:
    """Loaded in bfloat16, the filters are those of the file to the last bit."""
    path = folder(tmp_path / "in", published_file(), config())
    models = [M2BertModel.from_pretrained(path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    with torch.no_grad():
        k, half = (m.encoder.layer[0].attention.filter_fn(64) for m in models)
    assert torch.equal(k[0], half[0]) and torch.equal(k[1], half[1])


def test_one_class_from_the_file_of_another(tmp_path: Path) -> None:
    """The encoder of a masked LM, and a masked LM of the encoder's file."""
    path = folder(tmp_path / "in", published_file(), config())
    encoder = M2BertModel.from_pretrained(path)
    encoder.save_pretrained(tmp_path / "encoder")
    model = M2BertForMaskedLM.from_pretrained(tmp_path / "encoder")
    mine, theirs = model.bert.state_dict(), encoder.state_dict()
    same(mine, {name: theirs[name] for name in mine})


# -- the dresses they come in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.", "module.model."])
@pytest.mark.parametrize("nested", [False, True])
def test_prefixes_and_trainers_files(tmp_path: Path, prefix: str, nested: bool) -> None:
    state = published_file()
    content: Any = {prefix + name: tensor for name, tensor in state.items()}
    path = tmp_path / "checkpoint.pt"
    torch.save({"state": {"model": content, "step": 3}} if nested else content, path)
    same(M2BertForMaskedLM.from_published(path).state_dict(), state)


def test_sizes_are_read_off_the_weights(tmp_path: Path) -> None:
    first = tiny(M2BertForMaskedLM, hyena_training_additions=True, residual_long_conv=False, monarch_mlp_nblocks=8)
    first.save_published(tmp_path / "model.safetensors")
    again = M2BertForMaskedLM.from_published(tmp_path / "model.safetensors")
    differing = {k for k, v in first.config.to_dict().items() if again.config.to_dict()[k] != v}
    assert differing <= {"_name_or_path", "architectures", "dtype"}
    assert torch.equal(again(IDS).logits, first(IDS).logits)
    classes = M2BertForSequenceClassification.from_published(
        tmp_path / "model.safetensors", num_labels=5, pool_all=True
    )
    assert classes(IDS).logits.shape == (2, 5) and classes.bert.pooler.pooling == "mean"
    with pytest.raises(ProblemError, match="M2-BERT's state dict"):
        checkpoints.settings({"bert.embeddings.word_embeddings.weight": torch.zeros(2, 2)})


def test_a_training_addition_that_config_json_does_not_tell(tmp_path: Path) -> None:
    first = tiny(M2BertForMaskedLM, hyena_training_additions=True)
    path = folder(tmp_path / "in", first.state_dict(), M2BertConfig(**TINY))
    again = M2BertForMaskedLM.from_pretrained(path)
    assert again.config.hyena_training_additions
    assert torch.equal(again(IDS).logits, first(IDS).logits)


def test_a_padded_vocabulary(tmp_path: Path) -> None:
    """The file has 96 rows, the configuration 90 words: the first 90, and padded again on the way back."""
    state = published_file(vocabulary=96)
    model = M2BertForMaskedLM.from_pretrained(folder(tmp_path / "in", state, config()))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits.double(), masked_lm(state, IDS)[..., :90], rtol=0, atol=1e-4)
    back = checkpoints.published(model, vocab_multiple=8)
    assert shapes(back) == shapes(state)
    for name in state:
        rows = 90 if "word_embeddings" in name or "decoder" in name else None
        assert torch.equal(back[name][:rows], state[name][:rows]), name
    assert not back["bert.embeddings.word_embeddings.weight"][90:].any()
    wider = M2BertForMaskedLM.from_pretrained(tmp_path / "in", vocab_size=96)
    same(wider.state_dict(), state)
    with pytest.raises(ProblemError, match="vocab_size=96"):
        M2BertForMaskedLM.from_pretrained(tmp_path / "in", vocab_size=500)


DERIVED = (
    "bert.encoder.flashfft.f_32_fft",
    "bert.encoder.layer.0.attention.flashfft.twiddle_factors_ifft_32_1k",
    "bert.encoder.layer.0.attention.f_sqrt_N_ifft",
    "bert.encoder.layer.1.attention.twiddle_factors_fft",
    "bert.encoder.layer.1.attention.dft_matrix_fft",
)


def test_derived_buffers_are_ignored_by_name(tmp_path: Path) -> None:
    state = published_file()
    path = folder(tmp_path / "in", state | {name: torch.ones(2, 3) for name in DERIVED}, config())
    model, report = M2BertForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert not report["unexpected_keys"]
    same(model.state_dict(), state)
    # and nothing else is: every real name stays, an unknown one is told of
    assert checkpoints.cleaned(state).keys() == state.keys()
    path = folder(tmp_path / "in", state | {"bert.encoder.layer.0.attention.gate": torch.ones(2)}, config())
    _, report = M2BertForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert report["unexpected_keys"] == {"bert.encoder.layer.0.attention.gate"}


def test_frequencies_that_are_not_one_are_refused_and_those_not_finite_are_not() -> None:
    state = published_file()
    names = [name for name in state if name.endswith(".freq")]
    broken = state | {name: torch.full_like(state[name], float("nan")) for name in names}
    assert checkpoints.cleaned(broken).keys() == state.keys()
    with pytest.raises(ProblemError, match=r"frequencies are not one tensor"):
        checkpoints.cleaned(state | {names[-1]: state[names[-1]] + 1})


def test_derived_values_that_are_missing(tmp_path: Path) -> None:
    """Without the fixed tables, and with each shared tensor under one name only."""
    first = tiny(M2BertForMaskedLM)
    gone = ("position_ids", "pos_emb.t", "deltas", "decoder.weight", "_rev.1.freq", "3.freq", "5.freq")
    state = {name: tensor for name, tensor in first.state_dict().items() if not name.endswith(gone)}
    again = M2BertForMaskedLM.from_pretrained(folder(tmp_path / "in", state, first.config))
    same(again.state_dict(), first.state_dict())


def test_frequencies_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    state = published_file()
    name = "bert.encoder.layer.1.attention.filter_fn2.implicit_filter_rev.5.freq"
    state[name] = state[name] + 1
    with pytest.raises(ProblemError, match="One shared tensor"):
        M2BertForMaskedLM.from_pretrained(folder(tmp_path / "in", state, config()))


RAN: list[str] = []


def run(what: str) -> None:
    RAN.append(what)


class Unsafe:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return run, ("unpickled",)


def test_pickles_are_read_for_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"bert": Unsafe()}, path)
    with pytest.raises(M2GenError, match="more than tensors"):
        checkpoints.read(path)
    with pytest.raises(M2GenError, match="more than tensors"):
        M2BertForMaskedLM.from_pretrained(folder(tmp_path, {"bert": Unsafe()}, config(), path.name))  # type: ignore[dict-item]
    assert not RAN
    torch.load(path, weights_only=False)
    assert RAN, "it does run where one lets it"
    torch.save([1, 2], path)
    with pytest.raises(M2GenError, match="no state dict"):
        checkpoints.read(path)


# -- another number of positions ---------------------------------------------------------------------------------------


def test_longer_models_keep_the_results_of_short_texts(tmp_path: Path) -> None:
    state = published_file()
    path = folder(tmp_path / "in", state, config())
    short, long = (
        M2BertForMaskedLM.from_pretrained(path),
        M2BertForMaskedLM.from_pretrained(path, max_position_embeddings=150),
    )
    assert torch.equal(long(IDS).logits, short(IDS).logits)
    table, old = (m.bert.embeddings.position_embeddings.weight for m in (long, short))
    assert torch.equal(table, torch.cat([old, old, old[:22]])), "repeated, as the published 32K model was started"
    assert torch.equal(long.bert.embeddings.position_ids, torch.arange(150)[None])
    pos = long.bert.encoder.layer[0].attention.filter_fn2.pos_emb
    torch.testing.assert_close(pos.t[0, :, 0], torch.arange(150) / 63)
    angle = 2 * torch.pi * torch.arange(64, 150) / 64
    want = [torch.arange(64, 150) / 63, (1e-4 * angle).cos(), angle.cos(), -(1e-4 * angle).sin(), -angle.sin()]
    torch.testing.assert_close(pos.z[0, 64:], torch.stack(want, dim=1), rtol=0, atol=1e-5)
    with torch.no_grad():
        ids = tokens(1, 150)
        torch.testing.assert_close(long(ids).logits.double(), masked_lm(long.state_dict(), ids), rtol=0, atol=1e-4)


def test_longer_in_two_steps_is_longer_in_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "in", published_file(), config())
    M2BertForMaskedLM.from_pretrained(path, max_position_embeddings=128).save_pretrained(tmp_path / "twice")
    once = M2BertForMaskedLM.from_pretrained(path, max_position_embeddings=256)
    twice = M2BertForMaskedLM.from_pretrained(tmp_path / "twice", max_position_embeddings=256)
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], tensor, rtol=0, atol=1e-5)


def test_shorter_models_keep_the_results_of_short_texts(tmp_path: Path) -> None:
    path = folder(tmp_path / "in", published_file(), config())
    full, short = (
        M2BertForMaskedLM.from_pretrained(path),
        M2BertForMaskedLM.from_pretrained(path, max_position_embeddings=40),
    )
    assert torch.equal(full(IDS).logits, short(IDS).logits)
    assert short.bert.encoder.layer[0].attention.filter_fn.pos_emb.z.shape == (1, 40, 5)


def test_resized_vocabulary_stays_tied() -> None:
    model = tiny(M2BertForMaskedLM)
    model.resize_token_embeddings(96)
    assert model(IDS).logits.shape[-1] == 96
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
