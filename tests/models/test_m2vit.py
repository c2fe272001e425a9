"""M2-ViT: sizes of the paper's table, formulas, what depends on what, saving and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transcription as plain
from m2vit_tiny import KINDS, images, tiny
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from m2gen.errors import ProblemError
from m2gen.models import M2ViTConfig, M2ViTForImageClassification, M2ViTModel
from m2gen.models.m2vit import PRESETS
from m2gen.models.m2vit.layers import DropPath, M2ViTMLP
from m2gen.modules.hyena_filter import HyenaFilter
from m2gen.modules.linear import BlockDiagLinear, MonarchLinear
from m2gen.modules.sequence_mixer import SequenceMixer


def parameters(**changes: Any) -> int:
    """Of a classifier, counted without making it."""
    preset = changes.pop("preset", "M2-ViT-b")
    with torch.device("meta"):
        model = M2ViTForImageClassification(M2ViTConfig.preset(preset, **changes))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("preset", "millions"), [("M2-ViT-b", 45), ("HyenaViT-b", 88), ("ViT-b-Monarch", 33.0), ("ViT-b", 86.6)]
)
def test_parameters_of_the_papers_table(preset: str, millions: float) -> None:
    assert parameters(preset=preset) == pytest.approx(1e6 * millions, rel=0.01)


def test_parameters_by_hand() -> None:
    """Of ViT-B/16, known from elsewhere; and what a change of one choice makes of it."""
    d = 768
    assert parameters(preset="ViT-b") == 86_567_656
    blocks = parameters(preset="HyenaViT-b") - parameters(preset="M2-ViT-b")
    # three quarters of the MLPs' matrices, and biases (4 d and d) for an elementwise kernel (4 d)
    assert blocks == 12 * (3 * 8 * d * d // 4 + d)
    assert parameters(residual_long_conv=True) > 1.03 * 45e6, "the table leaves no room for a second long convolution"


@pytest.mark.parametrize("small", ["cifar", "fashion"])
def test_small_presets(small: str) -> None:
    assert parameters(preset=f"M2-ViT-{small}") < 0.57 * parameters(preset=f"ViT-{small}")


def test_every_preset_is_a_configuration() -> None:
    assert all(M2ViTConfig.preset(name).num_labels in (10, 1000) for name in PRESETS)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"mixer": "fourier"}, "use one of m2, attention"),
        ({"mlp": "sparse"}, "use one of block_diagonal, dense, monarch"),
        ({"pooling": "max"}, "use one of mean, cls"),
        ({"projections": "monarch"}, "those of the long convolution are dense"),
        ({"mlp": "dense", "gated": True}, "there is none"),
        ({"patch_size": 15}, "patches do not tile the image"),
        ({"intermediate_size": 1000}, "not a multiple"),
        ({"mixer": "attention", "num_attention_heads": 5}, "heads do not divide"),
        ({"drop_path_rate": 1.0}, "probability"),
        ({"hidden_dropout_prob": 2.0}, "probability"),
        ({"image_size": (28, 28)}, "whole number"),
        ({"patch_size": 0}, "whole number"),
        ({"num_channels": 0}, "whole number"),
        ({"intermediate_size": 0}, "whole number"),
        ({"num_hidden_layers": -1}, "whole number"),
        ({"mixer": "attention", "num_attention_heads": 0}, "whole number"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ProblemError, match=r"(?i)" + found):
        M2ViTConfig(**changes)
    with pytest.raises(ProblemError, match="no such preset"):
        M2ViTConfig.preset("M2-ViT-xxl")


def test_images_of_another_size_are_refused() -> None:
    for shape in ((1, 2, 15, 15), (1, 2, 12, 15), (1, 3, 12, 12)):
        with pytest.raises(ProblemError, match="Resize the images"):
            tiny()(torch.zeros(shape))


def transcribed(model: M2ViTForImageClassification, pixels: Tensor) -> Tensor:
    """The logits of an M2-ViT with a mean over patches, in float64, from the formulas; none of m2gen is used."""
    w = plain.Weights(model.state_dict())
    v, size = w.below("vit"), model.config.patch_size
    patches = pixels.double().unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3)
    x = plain.linear(projection(v.below("embeddings.patch_embeddings.projection")), patches.flatten(1, 2))
    for i in range(model.config.num_hidden_layers):
        layer = v.below(f"layers.{i}")
        x = x + plain.sequence_mixer(layer.below("attention"), plain.layer_norm(layer.below("layernorm_before"), x))
        h, m = plain.layer_norm(layer.below("layernorm_after"), x), layer.below("mlp")
        if model.config.mlp == "dense":
            h = plain.linear(m.below("fc2"), plain.gelu(plain.linear(m.below("fc1"), h)))
        else:
            h = plain.gelu(m["kernel"] * plain.block_diagonal(m["m3.weight"], h))
            h = plain.block_diagonal(m["m4.weight"], h)
        x = x + h
    return plain.linear(w.below("classifier"), plain.layer_norm(v.below("layernorm"), x).mean(1))


def projection(w: plain.Weights) -> plain.Weights:
    """The patches' convolution as a matrix."""
    return plain.Weights({"weight": w["weight"].flatten(1), "bias": w["bias"]})


@pytest.mark.parametrize("mlp", ["block_diagonal", "dense"])
@pytest.mark.parametrize("residual", [False, True])
def test_logits_are_those_of_the_formulas(mlp: str, residual: bool) -> None:
    model = tiny(mlp=mlp, residual_long_conv=residual, hyena_inner_layers=2, layer_norm_eps=1e-12).double()
    pixels = images(dtype=torch.float64)
    torch.testing.assert_close(model(pixels).logits, transcribed(model, pixels), rtol=1e-9, atol=1e-9)


def test_a_plain_vit_is_that_of_transformers() -> None:
    """Same names, same shapes, same logits: its weights go both ways."""
    model = tiny("vit").double()
    c = model.config
    names = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(c, name) for name in (*names, "intermediate_size", "layer_norm_eps", "num_labels")}
    theirs = ViTForImageClassification(ViTConfig(**sizes)).double().eval()
    theirs.load_state_dict(model.state_dict())
    pixels = images(dtype=torch.float64)
    torch.testing.assert_close(model(pixels).logits, theirs(pixels).logits, rtol=1e-9, atol=1e-9)


def last_state(model: M2ViTForImageClassification, pixels: Tensor) -> Tensor:
    return model.vit(pixels).last_hidden_state


@pytest.mark.parametrize("kind", ["m2", "hyena"])
def test_who_sees_whom(kind: str) -> None:
    """A change of the last patch reaches the first one if convolutions are bidirectional, and only then."""
    model = tiny(kind).double()
    pixels = images(1, dtype=torch.float64)
    changed = pixels.clone()
    changed[..., -1, -1] += 1
    moved = (last_state(model, pixels) - last_state(model, changed)).abs().amax(-1)[0]
    assert moved[-1] > 1e-3
    assert (moved[0] > 1e-6) == model.config.bidirectional
    changed = pixels.clone()
    changed[..., 0, 0] += 1
    assert (last_state(model, pixels) - last_state(model, changed)).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learned", [False, True])
def test_order_is_seen(kind: str, learned: bool) -> None:
    """Rows of patches exchanged: attention without positions takes no notice, everything else does."""
    model = tiny(kind, position_embeddings=learned).double()
    assert (model.vit.embeddings.position_embeddings is not None) == learned
    pixels = images(dtype=torch.float64)
    difference = (model(pixels).logits - model(pixels.roll(3, dims=2)).logits).abs().max()
    blind = model.config.mixer == "attention" and not learned
    assert (difference < 1e-9) if blind else (difference > 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_every_parameter(kind: str) -> None:
    model = tiny(kind).train()
    model(images(), labels=torch.tensor([0, 1, 2])).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a softmax is the same with and without the keys' bias
    assert without == [] or all(name.endswith("k_proj.bias") for name in without)


def test_loss_is_the_cross_entropy() -> None:
    model, labels = tiny(), torch.tensor([3, 0, 1])
    out = model(images(), labels=labels)
    expected = -out.logits.log_softmax(-1)[torch.arange(3), labels].mean()
    torch.testing.assert_close(out.loss, expected)
    with pytest.raises(TypeError, match="label"):
        model(images(), label=labels)


def test_hidden_states_and_tuples() -> None:
    model = tiny("vit")
    out = model(images(), output_hidden_states=True)
    assert [tuple(state.shape) for state in out.hidden_states] == [(3, 17, 16)] * 3
    assert model(images()).hidden_states is None
    assert torch.equal(model(images(), return_dict=False)[0], out.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_model_and_the_same_training(kind: str) -> None:
    states = []
    for _ in range(2):
        model = tiny(kind, drop_path_rate=0.3, hidden_dropout_prob=0.1).train()
        torch.manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            model(images(seed=step), labels=torch.tensor([0, 1, 2])).loss.backward()
            optimizer.step()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_stochastic_depth() -> None:
    """Rows are left out at the rate asked for and the others made up for it; nothing of it in evaluation."""
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.randn(20_000, 2, 3)
    y = drop(x)
    kept = y.abs().amax((1, 2)) > 0
    assert kept.float().mean() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    assert drop.eval()(x) is x
    assert [layer.drop_path.rate for layer in tiny(drop_path_rate=0.2, num_hidden_layers=3).vit.layers] == [0, 0.1, 0.2]


@pytest.mark.parametrize("kind", ["m2 gated", "monarch"])
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    """Dropout and stochastic depth included."""
    found = []
    for checkpointed in (False, True):
        model = tiny(kind, drop_path_rate=0.5, hidden_dropout_prob=0.2).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.vit.layers)
        torch.manual_seed(2)
        model(images(), labels=torch.tensor([0, 1, 2])).loss.backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def same(found: torch.nn.Module, want: torch.nn.Module) -> None:
    """Each tensor to the bit, and no other ones."""
    states = found.state_dict(), want.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), M2ViTConfig)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    same(loaded, model)
    torch.testing.assert_close(loaded(images()).logits, model(images()).logits)
    assert len({id(p) for p in loaded.parameters()}) == len(list(model.parameters())), "shared tensors are shared"
    encoder = AutoModel.from_pretrained(tmp_path)
    assert isinstance(encoder, M2ViTModel)
    same(encoder, model.vit)


def test_a_new_head_on_a_saved_encoder(tmp_path: Path) -> None:
    """Fine-tuning on other classes: the encoder is the saved one, the classifier is new and as usual."""
    model = tiny()
    model.vit.save_pretrained(tmp_path)
    tuned = M2ViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    same(tuned.vit, model.vit)
    assert 0 < tuned.classifier.weight.abs().max() <= 16**-0.5


def test_initial_values() -> None:
    """Each layer of a mixer passes on a third of its input's variance, whatever its kind."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    for kind in KINDS:
        model = M2ViTForImageClassification(M2ViTConfig(**{**KINDS[kind], **sizes, "num_labels": 4}))
        for module in model.vit.layers.modules():
            if isinstance(module, torch.nn.Linear | BlockDiagLinear | MonarchLinear) and module.in_features >= 64:
                x = torch.randn(500, module.in_features)
                bias = 0 if module.bias is None else module.bias
                assert (module(x) - bias).var().item() == pytest.approx(1 / 3, rel=0.25), module
    for table in (model.vit.embeddings.cls_token, model.vit.embeddings.position_embeddings):  # of the last kind
        assert table.std().item() == pytest.approx(0.02, rel=0.35)


@pytest.mark.parametrize(("kind", "count"), [("m2", 5), ("m2 gated", 5), ("hyena", 5), ("monarch", 3)])
def test_sizes_that_no_formula_checks_reach_the_modules(kind: str, count: int) -> None:
    """Dropout stands at every place that the configuration names; taps and initial frequencies."""
    model = tiny(kind, hidden_dropout_prob=0.25, short_kernel=5, hyena_w=3.0)
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert len(rates) == count and set(rates) == {0.25}
    mixers = [module for module in model.modules() if isinstance(module, SequenceMixer)]
    assert len(mixers) == (0 if kind == "monarch" else 2)
    for mixer in mixers:
        assert mixer.short_filter.weight.shape == (48, 1, 5)
        assert mixer.filter_fn.implicit_filter[1].w == 3


def test_an_mlp_drops_what_it_has_activated() -> None:
    """Half of the middle is zero in training and the rest doubled: the mean over many draws is the undropped result."""
    mlp = M2ViTMLP(M2ViTConfig(hidden_size=16, intermediate_size=32, mlp="dense", hidden_dropout_prob=0.5)).double()
    x = torch.randn(1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    draws = mlp(x.expand(20_000, 16))
    assert draws.std(0).min() > 0.01
    torch.testing.assert_close(draws.mean(0), mlp.eval()(x)[0], rtol=0, atol=0.02)


def test_bfloat16_follows_float32() -> None:
    """Under autocast and cast as a whole; the filters stay in float32 in both."""
    model = tiny("m2 gated")
    want = model(images()).logits
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images()).logits.float(), want, rtol=0.05, atol=0.05)
    model = model.to(torch.bfloat16)
    torch.testing.assert_close(model(images()).logits.float(), want, rtol=0.1, atol=0.1)
    filters = [m for m in model.modules() if isinstance(m, HyenaFilter)]
    assert filters and all(p.dtype == torch.float32 for f in filters for p in f.parameters())


def test_training_learns_which_side_is_bright() -> None:
    """64 noisy images, one side brighter: the loss falls far below that of guessing."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    pixels = images(64) + torch.where(labels[:, None, None, None] == 1, 1, -1) * torch.linspace(-1, 1, 12)
    model = tiny(num_labels=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.2
