"""M2-GPT: causal, trainable, reproducible."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from m2gen.errors import ProblemError
from m2gen.models import M2GPT, M2GPTConfig
from m2gen.models.m2gpt import sample


def model(**options: Any) -> M2GPT:
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "d_model": 16, "n_layers": 2, "max_length": 24, "filter_options": {"width": 16}}
    return M2GPT(M2GPTConfig(**(settings | options)))


IDS = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{}, {"expand": 2}, {"causal": "monarch"}], ids=str)
def test_later_tokens_do_not_change_earlier_logits(options: dict[str, Any]) -> None:
    m = model(**options).double()
    for cut in (1, 7, 23):
        other = IDS.clone()
        other[:, cut:] = (other[:, cut:] + 1) % 50
        torch.testing.assert_close(m(other)[:, :cut], m(IDS)[:, :cut], rtol=0, atol=1e-12)
        assert (m(other)[:, cut:] - m(IDS)[:, cut:]).abs().amax(-1).min() > 1e-6


def test_a_shorter_input_gives_the_same_first_logits() -> None:
    m = model().double()
    torch.testing.assert_close(m(IDS[:, :9]), m(IDS)[:, :9], rtol=0, atol=1e-12)


def test_shapes_loss_and_ignored_labels() -> None:
    m = model()
    logits, loss = m(IDS[:, :-1], IDS[:, 1:])
    assert logits.shape == (2, 23, 50)
    want = -logits.log_softmax(-1).gather(-1, IDS[:, 1:, None]).mean()
    torch.testing.assert_close(loss, want)
    assert loss.item() == pytest.approx(math.log(50), rel=0.05)  # it starts out knowing nothing
    labels = IDS[:, 1:].clone()
    labels[:, 5:] = -100
    torch.testing.assert_close(m(IDS[:, :-1], labels)[1], m(IDS[:, :5], IDS[:, 1:6])[1])


def test_parameter_count_and_tied_head() -> None:
    d, width, length, vocab, layers = 16, 16, 24, 50, 2
    network = 5 * width + width + 2 * (width * width + width) + width * d + width
    mixer = 3 * d * d + 3 * d + 9 * d + 3 * d + d * d + d
    layer = 2 * d + mixer + d + 5 * length + network
    assert sum(p.numel() for p in model().parameters()) == vocab * d + layers * layer + 2 * d


def test_heads_make_fewer_parameters() -> None:
    shared = model(filter_options={"width": 16, "heads": 4})
    assert sum(p.numel() for p in model().parameters()) - sum(p.numel() for p in shared.parameters()) == 2 * 12 * 16


def test_it_learns_a_tiny_text() -> None:
    m = model()
    optimiser = torch.optim.AdamW(m.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        m(IDS[:, :-1], IDS[:, 1:])[1].backward()
        optimiser.step()
    assert m(IDS[:, :-1], IDS[:, 1:])[1].item() < 0.5


def test_seeds_reproduce() -> None:
    def train() -> M2GPT:
        m = model(dropout=0.1)
        optimiser = torch.optim.AdamW(m.parameters(), lr=1e-3)
        for _ in range(3):
            optimiser.zero_grad()
            m(IDS[:, :-1], IDS[:, 1:])[1].backward()
            optimiser.step()
        return m.eval()

    assert torch.equal(train()(IDS), train()(IDS))


def test_state_dict_round_trip() -> None:
    first, second = model(), M2GPT(model().config)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(IDS), second(IDS))


def test_autocast_follows_float32() -> None:
    m = model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = m(IDS[:, :-1], IDS[:, 1:])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(logits.float(), m(IDS[:, :-1]), rtol=0.05, atol=0.05)


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("causal", ["fft", "monarch"])
def test_greedy_generation_is_the_argmax_of_each_prefix(causal: str, use_cache: bool) -> None:
    m = model(causal=causal)
    ids = m.generate(IDS[:, :4], 6, temperature=0, use_cache=use_cache)
    assert torch.equal(ids[:, :4], IDS[:, :4])
    for i in range(4, 10):
        assert torch.equal(ids[:, i], m(ids[:, :i])[:, -1].argmax(-1))


def test_generation_beyond_max_length_slides() -> None:
    """The last 24 tokens and no others, whether the prompt is longer than that or the text becomes so."""
    m = model(filter_options={"width": 16, "modulate": False})  # the first token counts as much as the last
    for block in m.blocks():  # at the initial scale a model does little more than repeat its last token
        torch.nn.init.normal_(block.attention.out_linear.weight, std=0.3)
    for prompt in (20, 30):
        ids = m.generate(IDS.repeat(1, 2)[:, :prompt], 60, temperature=0)
        assert ids.shape == (2, prompt + 60) and len(ids[:, prompt:].unique()) > 5
        for end in range(prompt, prompt + 60):
            assert torch.equal(ids[:, end], m(ids[:, max(end - 24, 0) : end])[:, -1].argmax(-1))


def test_generation_reproduces_with_its_generator() -> None:
    m = model()
    first, second, third = (
        m.generate(IDS[:, :3], 20, top_k=5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_sampling() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(sample(logits, top_k=2, generator=generator).flatten(), minlength=4)
    assert counts[:2].sum() == 0
    assert counts[3].item() / 4000 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)
    cold = torch.bincount(sample(logits, temperature=0.5, generator=generator).flatten(), minlength=4) / 4000
    torch.testing.assert_close(cold, (2 * logits[0]).softmax(-1), rtol=0, atol=0.03)


def test_monarch_without_deviation_is_the_convolution() -> None:
    plain, monarch = model().double(), model(causal="monarch", monarch_options={"deviation": 0}).double()
    monarch.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(monarch(IDS), plain(IDS), rtol=0, atol=1e-12)
    with torch.no_grad():
        for block in monarch.blocks():
            block.attention.monarch.on_input.weights[0].normal_()  # type: ignore[union-attr]
    assert (monarch(IDS) - plain(IDS)).abs().max() > 1e-6


def test_presets_have_the_sizes_of_the_paper() -> None:
    for name, wanted in {"145M": 145e6, "360M": 360e6}.items():
        with torch.device("meta"):
            m = M2GPT(M2GPTConfig.preset(name))
        assert sum(p.numel() for p in m.parameters()) == pytest.approx(wanted, rel=0.01)
    assert M2GPTConfig.preset("145M", max_length=8).max_length == 8


def test_gradient_checkpointing_changes_nothing_but_the_calls() -> None:
    """Every layer is passed through once more on the way back, with the mask."""
    m, mask, calls = model().double(), torch.ones_like(IDS), []
    mask[0, :7] = 0
    for block in m.blocks():
        block.attention.register_forward_pre_hook(lambda *_: calls.append(1))
    m(IDS, mask=mask)[..., 0].sum().backward()
    want, once = [p.grad for p in m.parameters()], len(calls)
    m.zero_grad()
    m.gradient_checkpointing, m._gradient_checkpointing_func = True, partial(checkpoint, use_reentrant=False)
    m(IDS, mask=mask)[..., 0].sum().backward()
    torch.testing.assert_close([p.grad for p in m.parameters()], want)
    assert (once, len(calls)) == (2, 2 + 4)


def test_what_a_layer_adds_at_the_start_shrinks_with_their_number() -> None:
    for layers in (1, 9):
        m = model(d_model=64, n_layers=layers)
        found = torch.stack([projection.weight for projection in m.projections()]).std().item()
        assert found == pytest.approx(0.02 / layers**0.5, rel=0.1)


def test_the_loss_of_half_precision_is_taken_in_float32() -> None:
    m = model().bfloat16()
    logits, loss = m(IDS, IDS)
    want = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), IDS.flatten())
    assert loss.dtype == torch.float32 and torch.equal(loss, want)


def test_refusals() -> None:
    with pytest.raises(ProblemError, match="no such preset"):
        M2GPTConfig.preset("1B")
    for name in ("vocab_size", "d_model", "n_layers", "max_length", "short_kernel", "nblocks", "expand"):
        for value in (0, -1, 2.0):
            with pytest.raises(ProblemError, match=f"{name}={value}"):
                M2GPTConfig(**{name: value})
    with pytest.raises(ProblemError, match="act on nothing"):
        M2GPTConfig(monarch_options={"order": 3})
    with pytest.raises(ProblemError, match="dropout=1"):
        M2GPTConfig(dropout=1.0)
    for options in ({"top_k": 0}, {"temperature": math.nan}, {"temperature": -1.0}):
        with pytest.raises(ProblemError, match="sampling"):
            model().stream(torch.zeros(1, 1, dtype=torch.long), 3, **options)
    with pytest.raises(ProblemError, match="-1 tokens"):
        model().stream(torch.zeros(1, 1, dtype=torch.long), -1)
    with pytest.raises(ProblemError, match="Use 'fft' or 'monarch'"):
        M2GPTConfig(causal="attention")
    with pytest.raises(ProblemError, match="at most 24"):
        model()(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(ProblemError, match="at least one token"):
        model().generate(torch.zeros(1, 0, dtype=torch.long), 1)
