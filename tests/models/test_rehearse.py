"""A model that was told its lengths compiles nothing when it is called at them, and is what it was before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import m2bert_tiny
import pytest
import torch
from small_models import NAMES, gpt, small
from torch import Tensor, nn

import m2gen
from m2gen.ahead import rehearse as rehearsal
from m2gen.cache import store
from m2gen.config import Config
from m2gen.errors import CompileError, ProblemError
from m2gen.models import M2GPT, M2BertForMaskedLM, M2BertModel, M2GPTConfig
from m2gen.modules import DimensionMixer, LongConv, MixerBlock, SequenceMixer
from m2gen.runtime import binding, executor
from m2gen.runtime.build import compiler, cpp_kernel

LENGTHS, BATCHES = (1, 9, 20), (1, 3)


def forget() -> None:
    """What this process has bound and loaded."""
    for cache in (*vars(executor).values(), binding.kernel_of, cpp_kernel.load):
        if hasattr(cache, "cache_clear"):
            cache.cache_clear()


@contextmanager
def nothing_new(bind: bool = True) -> Iterator[None]:
    """Raise where a process is started, or a kernel loaded; with `bind` also where a problem is bound."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process is started")

    caches = (cpp_kernel.load, binding.kernel_of, executor.bound)[: 3 if bind else 1]
    before = [cache.cache_info().misses for cache in caches]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        yield
    assert [cache.cache_info().misses for cache in caches] == before


def batches_of(model: nn.Module, given: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A batch of `small` at every size: with labels, and padded on either side where there are masks."""
    if "pixel_values" in given:
        for rows in BATCHES:
            yield {name: value[:rows] for name, value in given.items()}
        return
    for length, rows in product(LENGTHS, BATCHES):
        ids = given["input_ids"].repeat(2, 1)[:rows, :length].contiguous()
        labels = ids if given["labels"].dim() == 2 else given["labels"].repeat(2)[:rows]
        yield {"input_ids": ids, "labels": labels}
        mask = torch.ones_like(ids)
        mask[0, (length + 1) // 2 :] = 0
        yield {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if not hasattr(model, "new_cache"):  # with a CausalMonarch only on the right
            yield {"input_ids": ids, "labels": labels, "attention_mask": mask.flip(1)}


def use(model: Any, batch: dict[str, Tensor], training: bool = True) -> None:
    """Calls of evaluation, of which the later ones read what was kept, and of training."""
    model.eval()
    for mode in (torch.no_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            model(**batch)
    if training:
        model(**batch).loss.backward()
        model.train()
        model(**batch).loss.backward()


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


# -- what it leaves as it was ------------------------------------------------------------------------------------------


def state(model: Any) -> list[Any]:
    """All that might have changed, by value."""
    filters = [part for part in model.modules() if isinstance(part, m2gen.modules.HyenaFilter)]
    return [
        {name: (t.clone(), t.data_ptr()) for name, t in model.state_dict().items()},
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [part.training for part in model.modules()],
        [(f.declared, f.dropped, {n: id(kept) for n, (_, kept) in f._stay.items()}, id(f._checked)) for f in filters],
        torch.get_rng_state(),
        (torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), len(model.config.to_dict())),
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["M2-BERT, classes", "M2-GPT, Monarch", "M2-ViT"])
def test_no_trace(name: str, training: bool) -> None:
    model, given = small(name)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.2
    model(**given).loss.backward()
    model.train(training)
    next(model.children()).train(not training)
    if not training:
        m2gen.keep_filters(model, 9)
    called: list[object] = []
    for part in model.modules():
        part.register_forward_hook(lambda *_: called.append(0))
        part.register_forward_pre_hook(lambda *_: called.append(0))
        part.register_full_backward_hook(lambda *_: called.append(0))
    before = state(model)
    model.rehearse(None if "pixel_values" in given else (9, 20), 2, training=True)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    assert not called
    assert all(type(t) in (Tensor, nn.Parameter) for t in (*model.parameters(), *model.buffers()))


def test_what_has_hooks_is_called() -> None:
    """A mixer computes itself what its parts do, but for parts with hooks: other problems."""
    model, given = small("M2-BERT, words")
    for part in model.modules():
        part.register_forward_hook(lambda *_: None)
    forget()
    model.rehearse(20, 2, training=True)
    with nothing_new():
        use(model, given)


def test_in_any_mode() -> None:
    model, given = small("M2-BERT, words")
    forget()
    with torch.inference_mode():
        model.rehearse(20, 2, training=True)
    with nothing_new():
        use(model, given)


# -- compilers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is on disk."""
    for module in (store, compiler):
        monkeypatch.setattr(module, "config", lambda: Config(cache_dir=str(tmp_path / "cache")))
    store.source_folder.cache_clear()
    forget()
    yield
    monkeypatch.undo()
    store.source_folder.cache_clear()
    forget()


def test_kernels_are_compiled_together(cold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once: each of the first two waits for the other."""
    made: list[str] = []
    pair, build = threading.Barrier(2), compiler.build

    def spied(source: Any, *how: Any) -> bytes:
        made.append(source.name)
        if len(made) <= 2:
            pair.wait(60)
        return build(source, *how)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(compiler, "build", spied)
    model, given = small("M2-GPT")
    done = model.rehearse(20, 2, training=True)
    assert done.compiled == len(made) == len(set(made)) and not done.there
    assert str(done).startswith(f"{done.problems} problems, {done.compiled} kernels compiled, 0 were there, ")
    use(model, given)
    assert len(made) == done.compiled
    again = model.rehearse(20, 2, training=True)
    assert (again.problems, again.compiled, again.there) == (done.problems, 0, done.compiled)


def test_a_kernel_that_does_not_compile(cold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and calls do without it, as they would have."""
    monkeypatch.setattr(compiler, "build", refuses(compiler.build, "fftconv"))
    model, given = small("M2-GPT")
    done = model.rehearse(20, 2)
    assert done.failed and done.compiled and f", {done.failed} failed, " in str(done)
    with nothing_new():
        use(model, given, training=False)


def refuses(build: Callable[..., bytes], what: str) -> Callable[..., bytes]:
    def made(source: Any, *how: Any) -> bytes:
        if what in source.name:
            raise CompileError(source.name, "no luck", "try again")
        return build(source, *how)

    return made


def test_without_a_compiler(tmp_path: Path) -> None:
    """No error, and one line in the log."""
    code = "import m2gen.models as m; print(m.M2GPT(m.M2GPTConfig(n_layers=1)).rehearse(20, 2, training=True))"
    environment = os.environ | {"CXX": "/nowhere/c++", "M2GEN_CACHE_DIR": str(tmp_path), "M2GEN_LOG": "warning"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert " 0 kernels compiled, 0 were there" in done.stdout
    assert [line.split(":")[1] for line in done.stderr.splitlines() if line.startswith("m2gen:")] == [
        " no generated C++ here"
    ]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ({"lengths": 0}, "lengths 0: 0 is no size"),
        ({"lengths": (5, -1)}, "-1 is no size"),
        ({"lengths": True}, "True is no size"),
        ({"lengths": 2.5}, "2.5 is no size"),
        ({"lengths": "20"}, "'20' is no size"),
        ({"lengths": ()}, "none is given"),
        ({"lengths": (9, 49, 65)}, "at length 65: it was made for at most 48"),
        ({"lengths": 9, "batches": 0}, "batches 0: 0 is no size"),
        ({"lengths": 9, "batches": None}, "None is no size"),
        ({"lengths": 9, "batches": []}, "none is given"),
    ],
    ids=str,
)
def test_bad_sizes(sizes: dict[str, Any], part: str) -> None:
    with pytest.raises(ProblemError) as raised:
        gpt(1).rehearse(**sizes)
    assert part in str(raised.value)


def test_images_have_no_length() -> None:
    model, _ = small("M2-ViT")
    with pytest.raises(ProblemError, match=r"inputs have one size, and no length\. Leave lengths out"):
        model.rehearse(20)


def test_modules_without_inputs_of_their_own() -> None:
    with pytest.raises(ProblemError, match="a rehearsal of a LongConv: it does not say how it is called"):
        m2gen.rehearse(LongConv(4, 20), 20)
