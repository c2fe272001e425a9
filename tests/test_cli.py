from __future__ import annotations

import subprocess
import sys
import types

import pytest
from click.testing import CliRunner

import m2gen
from m2gen.cli import main
from m2gen.errors import M2GenError
from m2gen.planner.stored import plan_from_json

SIZES = (1, 2, 17, 784, 1000, 4096, 6000, 8191, 65536, 1048576, 4194304)
TARGETS = ("sm90", "sm80", "gfx942", "avx512", "avx2", "auto")


def run(*words):
    return CliRunner().invoke(main, words)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("arch", TARGETS)
def test_plan_of_every_size_on_every_target(n, arch):
    result = run("plan", f"fftconv n={n} h=768 b=8 bf16 causal gated", "--target", arch)
    assert result.exit_code == 0, result.output
    for part in (f"fftconv n={n} h=768 b=8 bf16 causal gated", "solver ", "size ", "flop = ", "library", "composed"):
        assert part in result.output


def test_plan_needs_no_quotes_and_gives_json():
    result = run("plan", "fftconv", "n=6000", "bf16", "--target", "sm90", "--json")
    assert result.exit_code == 0
    plan = plan_from_json(result.output)
    assert str(plan.problem) == "fftconv n=6000 h=1 b=1 bf16 causal"
    assert plan.arch == "sm90"
    assert plan == m2gen.plan("fftconv n=6000 bf16", target="sm90")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("plan", "fftconv n=0"), "from 1 to 2^40"),
        (("plan", "fftconv n=8 wavy"), "'wavy' is unknown"),
        (("plan", "fftconv n=8", "--target", "sm1"), "use one of sm80"),
        (("plan", f"fftconv n={2**39} b=64", "--target", "avx2"), "no solver can do it"),
    ],
)
def test_errors_are_one_clean_message(words, part):
    result = run(*words)
    assert result.exit_code == 2
    assert part.lower() in result.stderr.lower()
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_show_names_every_part_that_there_is():
    """Of plans in one launch, in passes, with turned tensors, of every op; what it says is what its error says."""
    help_, problems = run("show", "--help").output, [
        "fftconv n=1048576 h=192 b=2 bf16 causal gated",
        "fftconv n=8192 h=768 b=64 bf16 causal gated",
        "fftconv n=65536 h=768 b=16 bf16 causal gated blh",
        "blockdiag in=4096 out=4096 blocks=4 rows=8192 bf16 gelu glu",
        "monarch in=4096 out=4096 rows=8192 fp32 factors=64x64x64,64x64x64",
        "shortconv n=4096 h=768 b=8 bf16 gated blh",
        "shortconv n=4096 h=768 b=8 bf16",
    ]  # fmt: skip
    for problem in problems:
        for target in ("h100", "avx2"):
            said = run("show", problem, "--target", target, "--part", "none").stderr
            parts = said.rstrip(".\n").rpartition("Use ")[2].split(", ")
            assert len(parts) > 1, said
            for part in parts:
                name = "passes_NAME" if part.startswith("passes_") else part.rstrip("0123456789")
                assert name in help_, part


@pytest.mark.parametrize("words", [("--backward",), ("--lengths", "512"), ("--batches", "8"), ("--dtype", "bf16")])
def test_what_is_said_of_a_model_is_not_passed_over_for_a_problem(words):
    result = run("plan", "fftconv", "n=64", *words)
    assert result.exit_code == 2 and f"{words[0]}: of a --model only" in result.stderr


@pytest.mark.parametrize(
    ("words", "option"),
    [(("demo", "--minutes", value), "--minutes") for value in ("0", "-1", "nan", "inf", "soon")]
    + [(("tune", "--corpus", "--budget", value), "--budget") for value in ("0", "-600", "nan")]
    + [(("tune", "--corpus", "--threads", value), "--threads") for value in ("0", "-2")]
    + [(("compile", "--model", "80M", "--lengths", "0", "--out", "never-made"), "--lengths")]
    + [(("plan", "--model", "80M", "--batches", "-1"), "--batches")],
)
def test_numbers_that_mean_nothing_are_refused_at_once(words, option):
    result = run(*words)
    assert result.exit_code == 2 and option in result.stderr and "Traceback" not in result.output


def test_a_rejection_is_shown(monkeypatch):
    from m2gen.planner.fftconv.composed import Composed

    monkeypatch.setattr(Composed, "reject", lambda self, problem, limits: "not today")
    result = run("plan", "fftconv n=12345 h=3", "--target", "avx512")
    assert result.exit_code == 0
    assert "rejected" in result.output
    assert "not today" in result.output


def test_doctor():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for part in (
        "python",
        "torch",
        "triton",
        "M2GEN_LOG",
        "g++",
        "clang++",
        "bf16",
        "fp64",
        "library",
        "in memory",
        "generated C++",
    ):
        assert part in result.output


def test_doctor_looks_at_the_compiler_asked_for():
    assert "no-such-compiler" in run("doctor", "--cxx", "no-such-compiler").output
    assert "no-such-compiler" in CliRunner(env={"CXX": "no-such-compiler"}).invoke(main, ["doctor"]).output


def test_demo_gets_its_options(monkeypatch):
    seen = {}
    fake = types.ModuleType("m2gen.demo")
    fake.main = lambda **options: seen.update(options)
    monkeypatch.setitem(sys.modules, "m2gen.demo", fake)
    assert run("demo", "--minutes", "0.5", "--seed", "3").exit_code == 0
    assert seen == {"minutes": 0.5, "seed": 3}


def test_errors_of_the_demo_are_clean_too(monkeypatch):
    def fail(**options):
        raise M2GenError("the demo", "found nothing", "try again")

    fake = types.ModuleType("m2gen.demo")
    fake.main = fail
    monkeypatch.setitem(sys.modules, "m2gen.demo", fake)
    result = run("demo")
    assert result.exit_code == 2
    assert result.stderr == "Error: the demo: found nothing. Try again.\n"


@pytest.mark.parametrize("command", [(), ("plan",), ("compile",), ("doctor",), ("demo",)])
def test_help_has_an_example(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"m2gen {' '.join(command)}".strip() in result.output


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--model", "80M", "--lengths", "512", "--target", "sm90"),
        ("compile", "--model", "80M", "--lengths", "512", "--target", "avx2", "--out", "never-made"),
        ("tune", "--model", "80M", "--lengths", "512"),
    ],
)
def test_models_without_transformers_say_what_to_install(words):
    code = f"import sys; sys.modules['transformers'] = None; from m2gen.cli import main; main({words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = "Error: the model '80M': transformers is not installed. Run pip install 'm2gen[models]'.\n"
    assert done.stderr == said


def test_version():
    assert run("--version").output == f"m2gen {m2gen.__version__}\n"


HEAVY = ("torch", "triton", "sympy", "numpy")


@pytest.mark.parametrize(
    "module",
    ["m2gen.cli", "m2gen.planner.problem", "m2gen.planner.plan", "m2gen.planner.search", "m2gen.runtime.planning"],
)
def test_imports_are_lazy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_planning_for_a_named_target_needs_no_torch():
    code = "import sys, m2gen; m2gen.plan('fftconv n=100', target='sm90'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
