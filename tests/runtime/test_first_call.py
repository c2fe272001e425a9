"""What is compiled ahead is what calls look for; a first call has the rest compiled beside it. The GPU is made up:
calls are made on tensors of the CPU, and Triton's own just-in-time compiler is asked what it would compile for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from click.testing import CliRunner

from m2gen import M2GenError
from m2gen.cache import compiled
from m2gen.cli import main
from m2gen.config import Config
from m2gen.device.limits import target
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.binding import bound_anew
from m2gen.runtime.build import ahead, beforehand
from m2gen.runtime.build.cpp_kernel import gradients_follow
from m2gen.runtime.build.cross_compile import Job
from m2gen.runtime.build.launched import Pointer, launched
from m2gen.runtime.build.limits import planned_for
from m2gen.runtime.build.specialised import key_of, specialised, target_of
from m2gen.runtime.build.triton_kernel import Launcher
from m2gen.runtime.build.triton_source import load
from m2gen.runtime.measure import ready, rehearsed
from m2gen.runtime.measure.cases import case_of

pytestmark = pytest.mark.skipif(
    not hasattr(triton.JITFunction, "_pack_args"), reason="this Triton does not tell what it compiles a launch for"
)
SM90 = target("sm90")
SMALL = "fftconv n=256 h=16 b=4 fp16 causal gated"
PROBLEMS = (
    SMALL,
    "fftconv n=1000 h=6 b=4 bf16 causal gated skip",
    "fftconv n=1024 h=16 b=4 fp16 circular",
    "fftconv n=100 k=33 h=3 b=2 fp16 circular pre_gated",
    "fftconv n=16384 h=2 b=4 bf16 causal",
    "fftconv n=500 h=16 b=4 bf16 bidirectional gated blh add",
    "fftconv n=512 h=64 b=2 bf16 causal gated blh",
    "blockdiag in=768 out=6144 blocks=4 rows=100 bf16 gelu glu",
    "blockdiag in=96 out=96 blocks=4 rows=33 fp32 bias residual",
    "shortconv n=200 h=96 b=4 bf16 bias gated offset masked",
    "shortconv n=90 h=6 b=4 fp32 width=7 bias gated",
    "shortconv n=100 h=96 b=4 fp32 bias",
    "turn n=128 h=64 b=4 bf16",
    "monarch in=1024 out=1024 rows=64 bf16 factors=32x32x32,32x32x32",
    "monarch in=4096 out=4096 rows=64 bf16 factors=64x64x64,64x64x64",
)


def plans(text: str) -> list[Plan]:
    """The best of each way whose kernels are Triton's."""
    found = [plan for plan in rank(parse(text), SM90).plans if plan.body.kernels(parse(text))]
    return list({type(plan.body): plan for plan in reversed(found)}.values())


def run(plan: Plan) -> None:
    """Forward and every gradient, on the CPU's tensors."""
    with planned_for(SM90):
        case, kernel = case_of(plan.problem)(plan.problem, torch.device("cpu")), bound_anew(plan)
        case.back(kernel, case.call(kernel))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton sees one, and keeps nothing of it."""
    target = triton.backends.compiler.GPUTarget(*target_of("sm90"))
    found = {"device": lambda: 0, "stream": lambda _: 0, "target": lambda: target}
    seen = SimpleNamespace(**{f"get_current_{name}": value for name, value in found.items()})
    monkeypatch.setattr(triton.runtime.driver, "_active", seen)


Call = tuple[Any, tuple[Any, ...]]  # a spec and its arguments


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every launch from now on; nothing is launched."""
    met: list[Call] = []
    first = Launcher._first

    def note(self: Any, device: int, programs: int, arguments: tuple[Any, ...]) -> None:
        if arguments[0].is_meta:
            first(self, device, programs, arguments)
        else:
            met.append((self.spec, arguments))

    monkeypatch.setattr(Launcher, "_first", note)
    return met


def by_triton(call: Call, compile: Callable[..., Any]) -> None:
    """Let Triton do what it does before a launch, with `compile` in its compiler's place."""
    spec, arguments = call
    kernel = load(spec)
    kernel.device_caches.clear()
    _ = kernel.device_caches[0]  # names what compiles
    kernel.compile = compile
    kernel.run(*arguments, grid=(1,), warmup=True, num_warps=spec.num_warps, num_stages=spec.num_stages)
    kernel.device_caches.clear()


@pytest.mark.parametrize("text", PROBLEMS)
def test_what_is_compiled_ahead_is_what_calls_look_for(text: str, gpu: None, calls: list[Call]) -> None:
    found: list[str] = []

    def compile(source: Any, target: Any, options: Any) -> Any:
        found.append(key_of(SimpleNamespace(source=source, target=target, options=options)))  # type: ignore[arg-type]
        return SimpleNamespace()

    assert plans(text)
    for plan in plans(text):
        calls.clear()
        run(plan)
        jobs = rehearsed.jobs(plan, SM90, True)
        assert {job.launch for job in jobs} == {launched(*call).on("sm90") for call in calls}, plan
        for call in calls:
            by_triton(call, compile)
            assert found[-1] == key_of(specialised(launched(*call).on("sm90"), "sm90")), call[0].name
        forward = {job.launch for job in rehearsed.jobs(plan, SM90, False)}
        assert forward < {job.launch for job in jobs} or plan.problem.op == "turn"


def test_nothing_is_drawn_or_kept_for_a_rehearsal(calls: list[Call]) -> None:
    """Of a problem that this machine has no memory for: shapes are enough."""
    state = torch.get_rng_state()
    plan = plans("fftconv n=32768 h=4096 b=512 bf16 causal gated")[0]
    assert len(rehearsed.launches(plan, SM90, True)) >= 2 and not calls
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("value", "alike"),
    [(1, 1), (0, 32), (16, 4096), (3, 7), (-3, 17), (2**31 - 16, 16), (2**31, 2**40), (2**31 + 1, 2**40 + 9)],
)
def test_integers_that_are_compiled_for_alike_are_one(value: int, alike: int) -> None:
    x, spec = torch.empty(1), object()
    assert launched(spec, (x, value)) == launched(spec, (x, alike))


def test_integers_and_tensors_that_are_not() -> None:
    x, spec = torch.empty(64), object()
    others = [(x, n) for n in (1, 3, 16, 2**31, 2**31 + 1)]
    others += [(x[1:], 16), (x.half(), 16), (x.int(), 16)]
    assert len({launched(spec, one) for one in others}) == len(others)
    meta = torch.empty(64, device="meta")
    for one, other in ((x, meta), (x[1:], meta[1:]), (x[4:], meta[4:]), (x.half(), meta.half())):
        assert launched(spec, (one,)) == launched(spec, (other,))
    large = torch.empty(2**32, device="meta")
    assert launched(spec, (large,)).arguments == (Pointer("torch.float32", near=False),)
    assert launched(spec, (large,)).on("sm90") == launched(spec, (meta,)) != launched(spec, (large,)).on("gfx942")


# -- compiled ahead ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `m2gen compile` makes of a problem and its gradients for a GPU that is not here."""
    out = tmp_path_factory.mktemp("kernels")
    done = CliRunner().invoke(main, ["compile", *SMALL.split(), "--backward", "--target", "sm90", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """The folder in use, and an empty cache of Triton's."""

    def use(folder: Path) -> None:
        for module in (ahead, beforehand):
            monkeypatch.setattr(module, "config", lambda: Config(compiled_dir=str(folder)))

    monkeypatch.setattr(beforehand, "live", lambda _: SM90)
    beforehand.forget()
    compiled.opened.cache_clear()
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "triton")
        yield use
    beforehand.forget()
    compiled.opened.cache_clear()


def test_the_first_call_compiles_nothing_of_what_was_compiled_ahead(
    folder: Path, settings: Callable[[Path], None], gpu: None, calls: list[Call]
) -> None:
    settings(folder)
    hits: list[bool] = []
    plan = ahead.plan(parse(SMALL), SM90)
    assert plan is not None
    run(plan)
    assert len(rehearsed.jobs(plan, SM90, True)) >= 3
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
        for spec, arguments in calls:
            beforehand.before(spec, 0, arguments)
            by_triton((spec, arguments), triton.compile)
    assert len(calls) >= 3 and all(hits) and len(hits) == len(calls)


@pytest.mark.parametrize("damaged", ["*.json", "*.cubin"])
def test_what_is_damaged_is_not_taken(
    folder: Path, tmp_path: Path, damaged: str, settings: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(compiled, "fallback", said.append)
    other = tmp_path / "kernels"
    shutil.copytree(folder, other)
    for path in (other / "sm90").glob(damaged):
        if path.name != compiled.MANIFEST:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    settings(other)
    for job in rehearsed.jobs(plans(SMALL)[0], SM90, True):
        assert not ahead.into_tritons_cache(job.launch, "sm90")
        assert not beforehand.there(job)
    assert said and all("is not what its digest says" in line or "is not among" in line for line in said)


def test_a_folder_for_gpus_is_no_error_on_a_cpu_nor_the_other_way(folder: Path) -> None:
    compiled.opened.cache_clear()
    assert compiled.opened(str(folder), ("avx2",)) == []
    with pytest.raises(M2GenError, match="it has kernels for sm90, and this machine runs sm80"):
        compiled.opened(str(folder), ("sm80",))


# -- beside the first call ---------------------------------------------------------------------------------------------


class Beside:
    """Other processes that compile: what they were given, and what was waited for."""

    def __init__(self) -> None:
        self.begun: list[list[Job]] = []
        self.waited: list[Job] = []

    def begin(self, jobs: list[Job]) -> None:
        self.begun.append(jobs)

    def needed(self, job: Job) -> None:
        self.waited.append(job)


@pytest.fixture
def beside(settings: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Beside:
    found = Beside()
    monkeypatch.setattr(beforehand, "_background", found)
    return found


@pytest.mark.parametrize("text", [SMALL, "fftconv n=500 h=16 b=4 bf16 causal gated blh", PROBLEMS[7], PROBLEMS[13]])
def test_a_forward_pass_has_the_kernels_of_gradients_compiled_beside_its_own(
    text: str, beside: Beside, calls: list[Call]
) -> None:
    plan = ready.expect(plans(text)[0], SM90)
    run(plan)
    jobs = rehearsed.jobs(plan, SM90, True)
    token = gradients_follow.set(True)
    for spec, arguments in calls[:1]:
        beforehand.before(spec, 0, arguments)
    gradients_follow.reset(token)
    assert beside.begun == [jobs[1:]] and [job.launch for job in beside.waited] == [jobs[0].launch]
    assert all(job.what is not None for job in beside.begun[0]), "processes need not load torch"
    for spec, arguments in calls[1:]:
        beforehand.before(spec, 0, arguments)
    assert len(beside.begun) <= 2 and {job.launch for job in beside.waited} == {job.launch for job in jobs}


def test_evaluation_compiles_no_gradients(beside: Beside, calls: list[Call]) -> None:
    plan = ready.expect(plans(SMALL)[0], SM90)
    run(plan)
    beforehand.before(*_with_device(calls[0]))
    jobs, forward = (rehearsed.jobs(plan, SM90, gradients) for gradients in (True, False))
    assert beside.begun == [forward[1:]]
    beforehand._in_cache.update((job.launch, "sm90") for job in forward)  # by then
    back = next(call for call in calls if launched(*call).on("sm90") not in {job.launch for job in forward})
    beforehand.before(*_with_device(back))
    own = launched(*back).on("sm90")
    assert beside.begun[1:] == [[job for job in jobs if job not in forward and job.launch != own]]


def _with_device(call: Call) -> tuple[Any, int, tuple[Any, ...]]:
    return call[0], 0, call[1]


def test_what_is_there_is_not_compiled_again(
    beside: Beside, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ready.expect(plans(SMALL)[0], SM90)
    run(plan)
    monkeypatch.setattr(beforehand, "files_of", lambda what: {"some": "file"})
    for call in calls:
        beforehand.before(*_with_device(call))
    assert not beside.begun and not beside.waited


def test_other_tensors_than_planned_for_begin_nothing(beside: Beside, calls: list[Call]) -> None:
    """What would be compiled would be for others."""
    plan = ready.expect(plans(SMALL)[0], SM90)
    run(plan)
    spec, (u, *rest) = calls[0]
    beforehand.before(spec, 0, (u.flatten()[1:], *rest))
    assert not beside.begun and len(beside.waited) == 1


def test_where_triton_does_not_tell_kernels_are_compiled_as_ever(
    beside: Beside, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ready.expect(plans(SMALL)[0], SM90)
    run(plan)
    told: list[str] = []
    monkeypatch.setattr(beforehand, "once", told.append)
    monkeypatch.delattr(triton.JITFunction, "_pack_args")
    specialised.cache_clear()
    beforehand.before(*_with_device(calls[0]))
    assert not beside.begun and "does not tell what it compiles a launch for" in told[0]


def test_an_error_in_a_capture_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = plans(SMALL)[0].body.kernels(parse(SMALL))[0]
    assert beforehand.captured(spec, RuntimeError("any")) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    error = beforehand.captured(spec, RuntimeError("operation not permitted"))
    assert "operation not permitted" in str(error) and "Call it once" in str(error) and spec.name in str(error)


@pytest.mark.slow
def test_ready_fills_tritons_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By processes, which compile nothing a second time."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    beforehand.forget()
    plan = plans("turn n=128 h=64 b=4 bf16")[0]
    assert not ready.there(plan, SM90)
    assert ready.make_ready([(plan, True)], SM90) == (1, 0, 0)
    assert ready.there(plan, SM90)
    assert ready.make_ready([(plan, True)], SM90) == (0, 1, 0)
    beforehand.forget()


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 100])
def test_a_plan_tried_on_other_channels_has_whole_programs(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program beyond the last channel would write where nothing is."""
    launches: list[int] = []
    monkeypatch.setattr(Launcher, "run", lambda self, device, programs, arguments: launches.append(programs))
    plan = plans("fftconv n=100 h=3 b=3 fp16 causal gated")[0]
    run(replace(plan, problem=replace(plan.problem, h=channels)))
    assert launches and not any(programs % channels for programs in launches)
