"""A rehearsal leaves a model as it was, compiles all kernels together, and says what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rehearsed import forget, nothing_new, use
from small_models import gpt, small
from torch import Tensor, nn

import m2gen
from m2gen.cache import store
from m2gen.config import Config
from m2gen.errors import CompileError, ProblemError
from m2gen.modules import LongConv
from m2gen.runtime.build import compiler

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


def test_models_that_cannot_be_rehearsed() -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("no fakes")

    model, _ = small("M2-BERT, words")
    model.bert.encoder.forward = refuse
    with pytest.raises(ProblemError, match=r"cannot call it on fake tensors \(NotImplementedError: no fakes\)"):
        model.rehearse(20)
    with pytest.raises(ProblemError, match="some of its weights are away, on the meta device"):
        model.to("meta").rehearse(20)


def test_modules_without_inputs_of_their_own() -> None:
    with pytest.raises(ProblemError, match="a rehearsal of a LongConv: it does not say how it is called"):
        m2gen.rehearse(LongConv(4, 20), 20)
