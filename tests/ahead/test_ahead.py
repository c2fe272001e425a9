"""`m2gen compile`: a folder that a machine with no compiler and no place to write to can use, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from click.testing import CliRunner, Result
from fresh import results
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel

import m2gen
from m2gen.ahead.command import _named
from m2gen.ahead.models import Sizes, record
from m2gen.ahead.record import Wanted, notes_of, recorder
from m2gen.cache import compiled
from m2gen.cli import main
from m2gen.config import Config
from m2gen.dtypes import DTYPES
from m2gen.models import (
    M2BertConfig,
    M2BertModel,
    M2GPTForCausalLM,
    M2GPTPretrainedConfig,
    M2ViTConfig,
    M2ViTModel,
)
from m2gen.ops.blockdiag_linear import blockdiag_glu
from m2gen.ops.gated_depthwise_conv1d import gated_depthwise_conv1d
from m2gen.planner import search
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.runtime import binding, executor, planning
from m2gen.runtime.bindings import blockdiag, gate, monarch, native, shortconv
from m2gen.runtime.bindings.kept_spectra import KeptFilter
from m2gen.runtime.bindings.native import NativeKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build import ahead, compiler, cpp_kernel
from m2gen.runtime.build.limits import live

HERE = Path(__file__).parent
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 40}


def run(words: str, out: Path) -> Result:
    return CliRunner().invoke(main, ["compile", *words.split(), "--out", str(out)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model in float64."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = M2BertConfig(vocab_size=50, hyena_filter_order=8, hidden_dropout_prob=0.0, **SMALL)
    M2BertModel(config).double().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kernels(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kernels")
    done = run(f"--model {model} --batches 2 --backward", out)
    assert done.exit_code == 0, done.output
    return out


def test_a_machine_without_compiler(model: Path, kernels: Path, tmp_path: Path) -> None:
    """Another process: no compiler in PATH, no process started, no folder to write to, nothing to complain about."""
    ids = torch.randint(1, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    torch.save(ids, tmp_path / "ids")
    (tmp_path / "blocked").write_text("no folder")
    for name in ("empty", "temporary"):
        (tmp_path / name).mkdir()
    before = {path: path.stat().st_mtime_ns for path in kernels.rglob("*")}
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | {
        "PATH": str(tmp_path / "empty"),
        "HOME": str(tmp_path / "blocked"),
        "M2GEN_CACHE_DIR": str(tmp_path / "blocked"),
        "M2GEN_COMPILED_DIR": str(kernels),
        "TMPDIR": str(tmp_path / "temporary"),
        "M2GEN_LOG": "warning",
    }
    words = [sys.executable, str(HERE / "fresh.py"), str(model), str(tmp_path / "ids"), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "g++ is not found; clang++ is not found; c++ is not found" in done.stdout
    assert "m2gen:" not in done.stderr, "nothing falls back"
    assert {path: path.stat().st_mtime_ns for path in kernels.rglob("*")} == before, "nothing is written"
    assert not any((tmp_path / "temporary").iterdir())
    expected = results(AutoModel.from_pretrained(model).eval(), ids)
    for found, want in zip(torch.load(tmp_path / "out"), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())


def test_what_needs_no_kernel_is_told_with_the_reason(tmp_path: Path) -> None:
    done = run("fftconv n=100 fp64 --target sm90", tmp_path)
    line, last = done.output.splitlines()
    assert done.exit_code == 0 and last.endswith(": 1 problem, 0 kernels compiled, 0 were there")
    assert line.startswith("fftconv n=100 h=1 b=1 fp64 causal: planned as library, which needs no generated kernel: ")
    assert "fused (rejected: matrix units have no fp64 path here" in line


def test_a_second_run_finds_everything_there(model: Path, kernels: Path) -> None:
    done = run(f"--model {model} --batches 2,3 --backward", kernels)
    assert done.exit_code == 0 and " 0 kernels compiled" in done.output, done.output


def test_the_manifest_says_what_is_there(model: Path, kernels: Path) -> None:
    (place,) = kernels.iterdir()
    manifest = compiled.read(place)
    assert manifest is not None and manifest.target == place.name and "-march" in manifest.compiler
    problem = "fftconv n=40 h=32 b=2 fp64 bidirectional post_gated skip blh"
    assert manifest.problems[problem].of == [str(model)] and " native " in manifest.problems[problem].plan
    for op in ("shortconv", "blockdiag", "gate"):
        assert any(one.split()[0] == op for one in manifest.problems), op
    products = [parse(one) for one in manifest.problems if one.startswith("blockdiag ")]
    assert any(one.residual for one in products) and any(one.glu and one.activation for one in products)
    named = {name for entry in manifest.problems.values() for name in entry.kernels}
    assert named | {"m2gen_dispatch"} == set(manifest.kernels)
    files = {name for kernel in manifest.kernels.values() for name in kernel.files}
    assert files | {compiled.MANIFEST} == {path.name for path in place.iterdir()}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> tuple[set[Problem], set[str]]:
    """The long convolutions that are run from now on, and the kernels that are loaded for other operators."""
    met: set[Problem] = set()
    loaded: set[str] = set()
    bound, load = executor.bound, cpp_kernel.load

    def noting(problem: Problem, *how: Any) -> Any:
        met.update({problem} if problem.op == "fftconv" else ())
        return bound(problem, *how)

    monkeypatch.setattr(executor, "bound", noting)
    for cache in (*vars(executor).values(), bound, binding.kernel_of):
        if hasattr(cache, "cache_clear"):
            cache.cache_clear()
    for module in (blockdiag, gate, monarch, shortconv):
        monkeypatch.setattr(module, "load", lambda spec: (loaded.add(spec.name), load(spec))[1])
    return met, loaded


def recorded(folder: Path, config: Any, *sizes: Any, gradients: bool = True) -> tuple[Wanted, set[str]]:
    """What fake tensors show of a model: its long convolutions, and the names of the kernels of other operators."""
    config.save_pretrained(folder)
    wanted = Wanted()
    record(wanted, str(folder), live(torch.device("cpu")), Sizes(*sizes), gradients=gradients)
    products = {problem: problem in wanted.trained for problem in wanted.problems if problem.op != "fftconv"}
    others: set[str] = set()
    for problem, trained in products.items():
        wanted.problems.pop(problem)
        wanted.trained.discard(problem)
        others |= {spec.name for spec in m2gen.plan(problem).body.kernels(problem, trained)}
    return wanted, others


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_recorded_is_what_is_called(called: tuple[set[Problem], set[str]], tmp_path: Path, dtype: str) -> None:
    """The problems and kernels that fake tensors show are those that real ones load."""
    met, loaded = called
    config = M2BertConfig(vocab_size=50, hyena_filter_order=8, **SMALL)
    wanted, others = recorded(tmp_path, config, (24, 40), (1, 3), dtype)
    model = M2BertModel(config).to(getattr(torch, DTYPES[dtype].torch_name))
    for length, batch in product((24, 40), (1, 3)):
        ids = torch.zeros((batch, length), dtype=torch.long)
        model(ids)[0].sum().backward()
        with torch.no_grad():
            model(ids)
    assert met == set(wanted.problems) == wanted.trained
    assert others == loaded


@pytest.mark.parametrize("options", [{}, {"mlp": "monarch", "gated": False}], ids=str)
def test_recorded_of_images(called: tuple[set[Problem], set[str]], tmp_path: Path, options: dict[str, Any]) -> None:
    met, loaded = called
    config = M2ViTConfig.preset("M2-ViT-fashion", num_hidden_layers=1, **options)
    wanted, others = recorded(tmp_path, config, (), (2,))
    model = M2ViTModel(config)
    pixels = torch.zeros(2, 1, 28, 28)
    model(pixels)[0].sum().backward()
    with torch.no_grad():
        model.eval()(pixels)
    assert met == set(wanted.problems) == wanted.trained
    assert others == loaded


@pytest.mark.parametrize("options", [{}, {"causal": "monarch"}, {"expand": 2}], ids=str)
def test_recorded_of_generation(called: tuple[set[Problem], set[str]], tmp_path: Path, options: dict[str, Any]) -> None:
    """Any prompt, any number of tokens: tiles of every size, the last ones cut off by the model's longest text."""
    met, loaded = called
    config = M2GPTPretrainedConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=2, max_position_embeddings=300, **options
    )
    wanted, others = recorded(tmp_path, config, (40, 150), (1,), gradients=False)
    model = M2GPTForCausalLM(config).eval()
    with torch.no_grad():
        for length in (40, 150):
            model(torch.zeros((1, length), dtype=torch.long))
    for length in (7, 150, 280):  # read with a cache by `generate`
        model.generate(torch.ones((1, length), dtype=torch.long), max_new_tokens=300 - length, do_sample=False)
    assert met == set(wanted.problems)
    assert loaded == others


def test_every_operator_is_noted() -> None:
    """No operator's kernels are forgotten when a model's are compiled ahead."""
    noted = {op.name() for op in notes_of(Wanted(), "", live(torch.device("cpu")))}
    assert noted == {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("m2gen::")}


def test_second_derivatives_are_noted() -> None:
    wanted = Wanted()
    x, k = torch.ones(1, 2, 9), torch.ones(2, 5, requires_grad=True)
    with FakeTensorMode(allow_non_fake_inputs=True), recorder(wanted, "", live(torch.device("cpu"))):
        (dk,) = torch.autograd.grad(m2gen.fftconv(x, k).square().sum(), k, create_graph=True)
    assert [(problem.n, problem.k) for problem in wanted.trained] == [(9, 5)]
    assert dk.shape == k.shape


def test_a_plan_lists_every_kernel_that_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: set[Any] = set()
    load = native.load
    monkeypatch.setattr(native, "load", lambda spec: (loaded.add(spec), load(spec))[1])
    problem = parse("fftconv n=60 h=2 b=2 causal")
    step: Any = native_step(problem)
    kernel = NativeKernel(problem, step)
    u, k = torch.randn(2, 2, 60), torch.randn(2, 60)
    kept = KeptFilter(k.clone(), None, None)
    for x in (Operands(u, k), Operands(u, kept.tensors[0])):
        kernel.forward(x)
    kernel.backward(u, Operands(u, k), Gradients(u=torch.empty_like(u), k=torch.zeros_like(k)))
    assert loaded == set(step.kernels(problem)) and loaded > set(step.kernels(problem, gradients=False))


def native_step(problem: Problem) -> Any:
    best = search.rank(problem, live(torch.device("cpu"))).best("native")
    assert best is not None
    return best.body


def test_what_was_compiled_ahead_is_done_as_it_was_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would be planned now: another plan's kernels are not there."""
    problem, limits = parse("fftconv n=70 h=2 b=2 causal"), live(torch.device("cpu"))
    odd = search.rank(problem, limits).plans[-1]
    monkeypatch.setattr(planning.search, "plan", lambda *_: odd)
    assert run(str(problem), tmp_path).exit_code == 0
    monkeypatch.undo()
    assert m2gen.plan(problem) != odd
    monkeypatch.setattr(ahead, "config", lambda: Config(compiled_dir=str(tmp_path)))
    assert m2gen.plan(problem) == odd == ahead.plan(problem, limits)
    assert ahead.plan(FftConvProblem(n=71), limits) is None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(triton, "knobs"), reason="Triton before 3.4 compiles for the GPU at hand only")
def test_gpu_kernels_can_be_looked_at(tmp_path: Path) -> None:
    done = run("fftconv n=256 h=8 fp16 causal gated --backward --target sm90", tmp_path)
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "sm90" / "manifest.json").read_text())
    assert len(manifest["kernels"]) == 4  # forward, all gradients, the spectrum and the way back to taps
    for kernel in manifest["kernels"].values():
        assert {Path(name).suffix for name in kernel["files"]} == {".py", ".ttir", ".ptx", ".sass", ".cubin", ".json"}
    assert any(".target sm_90" in path.read_text() for path in (tmp_path / "sm90").glob("*.ptx"))


def test_a_failing_kernel_is_told_and_the_rest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m2gen.errors import CompileError

    made = compiler.portable

    def fail(source: Any, arch: str, kind: str = "-shared") -> bytes:
        if "spectrum" in source.name:
            raise CompileError(source.name, "no luck", "try again")
        return made(source, arch, kind)

    monkeypatch.setattr(compiler, "portable", fail)
    done = run("fftconv n=90 h=2 causal", tmp_path)
    assert done.exit_code == 2 and "1 kernels did not compile" in done.output and "no luck" in done.output
    (place,) = tmp_path.iterdir()
    manifest = compiled.read(place)
    assert manifest is not None and len(manifest.kernels) == 3


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "nothing to compile is named"),
        ("fftconv n=0", "from 1 to 2^40"),
        ("--model nowhere", "neither a folder with a config.json nor a preset"),
        ("--model 80M --lengths 5,x", "not numbers from 1 on"),
        ("--model 80M --dtype fp8", "there is no such dtype"),
        ("fftconv n=8 --target sm1", "use one of sm80"),
    ],
)
def test_errors_are_one_clean_message(tmp_path: Path, words: str, part: str) -> None:
    done = run(words, tmp_path / "out")
    assert done.exit_code == 2 and part in done.stderr.lower() and done.stderr.startswith("Error: ")
    assert not (tmp_path / "out").exists()


def _trained(problem: Problem) -> set[Problem]:
    """What a forward and a backward pass of the problem's public op pose."""
    wanted, dtype = Wanted(), getattr(torch, DTYPES[problem.dtype].torch_name)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=dtype, requires_grad=True)

    with FakeTensorMode(), recorder(wanted, "", live(torch.device("cpu"))):
        if isinstance(problem, BlockDiagProblem):
            weight = normal(problem.blocks, problem.block_out, problem.block_in)
            more = [normal(problem.n_out) if problem.bias else None]
            residual = normal(problem.rows, problem.results) if problem.residual else None
            call = blockdiag_glu if problem.glu else m2gen.blockdiag_linear
            how = [problem.activation, *more] if problem.glu else [*more, problem.activation]
            y = call(normal(problem.rows, problem.n_in), weight, *how, residual=residual)
        elif isinstance(problem, FftConvProblem):
            u, add = (normal(problem.b, problem.h, problem.n) for _ in range(2))
            y = m2gen.fftconv(u, normal(problem.h, problem.n), add=add if problem.add else None)
        else:
            assert isinstance(problem, ShortconvProblem)
            channels = 3 * problem.h if problem.gated else problem.h
            shape = (channels, problem.n) if problem.layout == "BHL" else (problem.n, channels)
            x, weight = normal(problem.b, *shape), normal(channels, problem.width)
            bias, layout = normal(channels) if problem.bias else None, problem.layout
            if problem.gated:
                offset = normal(channels) if problem.offset else None
                mask = torch.ones(problem.b, problem.n, dtype=torch.bool) if problem.masked else None
                to = problem.to or layout
                z, g = gated_depthwise_conv1d(x, weight, bias, layout=layout, to=to, offset=offset, mask=mask)
                y = z + g
            else:
                y = m2gen.depthwise_conv1d(x, weight, bias, padding="causal", layout=layout)
        y.backward(torch.randn_like(y))
    return set(wanted.problems)


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=40 h=8 b=2",
        "fftconv n=40 h=8 b=2 add",
        "blockdiag in=64 out=96 blocks=4 rows=9 bias",
        "blockdiag in=64 out=96 blocks=4 rows=9 fp64 bias gelu residual",
        "blockdiag in=64 out=96 blocks=4 rows=9 bf16 silu glu",
        "blockdiag in=64 out=96 blocks=4 rows=9 bias relu glu residual",
        "shortconv n=40 h=8 b=2 width=3 bias",
        "shortconv n=40 h=8 b=2 width=3 blh",
        "shortconv n=40 h=8 b=2 width=3 bf16 bias gated",
        "shortconv n=40 h=8 b=2 width=3 gated blh to=bhl",
        "shortconv n=40 h=8 b=2 width=3 bias gated blh",
        "shortconv n=40 h=8 b=2 width=3 bf16 bias gated offset masked blh",
    ],
)
def test_a_problems_gradients_are_compiled_with_it(text: str) -> None:
    problem = parse(text)
    posed = {problem, *problem.of_gradients}
    assert _trained(problem) <= posed
    assert set(_named([problem], False, True).problems) == posed
    assert set(_named([problem], False, False).problems) == {problem}
