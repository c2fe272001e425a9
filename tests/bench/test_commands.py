"""What the benchmarks' command line says of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench import estimates, first_call
from bench.__main__ import BENCHMARKS, main


def test_estimates_say_what_their_columns_are(capsys: pytest.CaptureFixture[str]) -> None:
    estimates.main("sm90", "n=256 ")
    said = capsys.readouterr().out
    for part in ("at 3015 GB/s", "forward + gradients", "how many floors", "on an H100", "published", "its README's"):
        assert part in said


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_tells_the_options_of_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"python -m bench {name}" in said
    assert ("--row-seconds" in said) == (name == "gpu") and ("--memory" in said) == (name == "cpu")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("cpu", "--rounds", "1"), "'1' is not a whole number from 2"),
        (("cpu", "--rounds", "-3"), "'-3' is not a whole number from 2"),
        (("short", "--threads", "0"), "'0' is not a whole number from 1"),
        (("generate", "--batch", "0"), "'0' is not a whole number from 1"),
        (("first-call", "--rounds", "0"), "'0' is not a whole number from 1"),
        (("gpu", "--minutes", "0"), "'0' is not a number above 0"),
        (("gpu", "--minutes", "nan"), "'nan' is not a number above 0"),
        (("gpu", "--minutes", "inf"), "'inf' is not a number above 0"),
        (("gpu", "--row-seconds", "-1"), "'-1' is not a number above 0"),
        (("gpu", "--workers", "0"), "'0' is not a whole number from 1"),
        (("gpu", "--device", "tpu"), "invalid choice: 'tpu'"),
        (("cpu", "--minutes", "3"), "unrecognized arguments: --minutes 3"),
        (("report",), "the following arguments are required: files"),
        (("compare", "one.json"), "the following arguments are required: new"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    words: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2 and part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "words"),
    [("transformers", ["models"]), ("transformers", ["gpu", "--models"]), ("matplotlib", ["report", "x.json"])],
)
def test_what_is_missing_is_told_with_its_extra(package: str, words: list[str]) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from bench.__main__ import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{package} is not installed. Run pip install 'm2gen[bench]'." in done.stderr


def test_errors_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimates", "--target", "sm1"]) == 2
    assert capsys.readouterr().err.startswith("python -m bench: error: target 'sm1': ")


def test_first_call_says_how_much_it_does() -> None:
    said = "\n".join(first_call.begins(6, 3, "sm90"))
    for part in ("36 processes", "6 to 18 minutes", "in brackets the seconds of a core"):
        assert part in said
