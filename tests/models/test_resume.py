"""Training that is killed, and training on two processes: the same losses as one run on one process.

The runs are those of examples/masked_lm.py, small.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m2gen.errors import ProblemError
from tests.forks import Forks

ROOT = Path(__file__).parents[2]
TEXT = "the quick brown fox jumps over a lazy dog while seven wizards boil the box with five dozen liquor jugs"
WORDS = TEXT.split(" ")
SMALL = "--width 32 --layers 2 --heads 2 --filter_width 16 --length 24 --vocabulary 120 --use_cpu --disable_tqdm true"
STEPS = "--max_steps 14 --logging_steps 1 --save_steps 4 --eval_steps 7 --learning_rate 3e-3"

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
IMPORTS = "import accelerate, matplotlib.pyplot, torch; from examples import masked_lm"
STRAIGHT = "import sys; from examples import masked_lm; masked_lm.main(sys.argv[1:])"

# runs the script, and kills itself as `kill -9` does: after a step, or while the checkpoint of a step is being written
KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from examples import masked_lm
from m2gen.models.training import M2Trainer

where, step, *command = sys.argv[1:]

def kill(): os.kill(os.getpid(), signal.SIGKILL)

class AfterStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if where == "after" and state.global_step == int(step):
            kill()

class Killed(M2Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(AfterStep())

    def _save_rng_state(self, folder):
        if where == "writing" and self.state.global_step == int(step):
            kill()
        super()._save_rng_state(folder)

masked_lm.M2Trainer = Killed
masked_lm.main(command)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    order = torch.randint(0, len(WORDS), (240,), generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text(" ".join(WORDS[i] for i in order))
    sys.path.insert(0, str(ROOT / "examples"))
    import masked_lm

    masked_lm.make_tokenizer(path.parent / "tokenizer", [path.read_text()], 120)
    return path


def command(folder: Path, text: Path, *more: str) -> list[str]:
    """Every run has the same tokenizer: training one breaks ties of frequency at random."""
    same = ["--tokenizer", str(text.parent / "tokenizer")]
    return [*SMALL.split(), *STEPS.split(), *same, "--output_dir", str(folder), "--text", str(text), *more]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """For runs on one process."""
    with Forks(IMPORTS, tmp_path_factory.mktemp("said"), ENVIRONMENT) as forks:
        yield forks


def log(folder: Path) -> list[dict[str, float]]:
    """What the last checkpoint says of every step, times of day aside."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
        for entry in history
    ]


def straight(forks: Forks, folder: Path, text: Path, *more: str) -> None:
    done = forks.run(STRAIGHT, *command(folder, text, *more), environment=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["m2bert"])
def test_a_run_that_is_killed_three_times_is_the_run_that_is_not(
    forks: Forks, tmp_path: Path, text: Path, model: str
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    straight(forks, whole, text, "--per_device_train_batch_size", "2", "--model", model)
    again = command(pieces, text, "--per_device_train_batch_size", "2", "--model", model, "--resume")
    for where, step in (("after", "6"), ("writing", "8"), ("after", "10")):
        killed = forks.run(KILLED, where, step, *again, environment=ENVIRONMENT)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    straight(forks, pieces, text, "--per_device_train_batch_size", "2", "--model", model, "--resume")
    assert log(pieces) == log(whole)
    assert [entry["step"] for entry in log(pieces) if "loss" in entry] == list(range(1, 15)), "each step once"
    assert log(whole)[-1]["epoch"] > 2, "a kill fell into a later epoch"
    ends = [load_file(folder / "model.safetensors") for folder in (whole, pieces)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.slow
def test_two_processes_are_one(forks: Forks, tmp_path: Path, text: Path) -> None:
    """Same global batch, no dropout: the losses agree to rounding."""
    # what is left at the end of an epoch cannot be shared alike
    same = ["--dropout", "0", "--dataloader_drop_last", "true", "--eval_strategy", "no"]
    straight(forks, tmp_path / "one", text, "--per_device_train_batch_size", "4", *same)
    more = ["--per_device_train_batch_size", "2", *same, "--ddp_backend", "gloo"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(ROOT / "examples" / "masked_lm.py")
    words = [sys.executable, *torchrun, script, *command(tmp_path / "two", text, *more)]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    one, two = ([entry for entry in log(tmp_path / name) if "loss" in entry] for name in ("one", "two"))
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two] == list(range(1, len(one) + 1))
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path, text: Path) -> None:
    """A new one would number words otherwise; and nothing is written beside the model."""
    import masked_lm

    with pytest.raises(ProblemError, match="neither tokenizer"):
        masked_lm.read_tokenizer(tmp_path)
    options = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "--text", str(text), "--start_from", str(tmp_path)]
    with pytest.raises(ProblemError, match="the tokenizer in"):
        masked_lm.main(options)
    assert not list(tmp_path.glob("tokenizer*"))


def test_a_text_that_is_not_there_leaves_no_tokenizer(tmp_path: Path, text: Path) -> None:
    """It would be taken for the one of the next run's text."""
    import masked_lm

    (tmp_path / "empty").touch()
    for name in ("empty", "nowhere"):
        with pytest.raises(ProblemError, match=name):
            masked_lm.main(["--output_dir", str(tmp_path), "--use_cpu", "--text", str(tmp_path / name)])
    assert not list(tmp_path.glob("tokenizer*"))


def test_a_length_without_room_for_words(tmp_path: Path, text: Path) -> None:
    import masked_lm

    run = ["--output_dir", str(tmp_path), "--use_cpu", "--text", str(text), "--length", "2"]
    with pytest.raises(ProblemError, match="Use 3 or more"):
        masked_lm.main(run)


def test_a_new_run_has_a_tokenizer_of_its_own_text(tmp_path: Path, text: Path) -> None:
    """Also where an earlier run, on another text, got no further than its tokenizer; with --resume that one is kept."""
    import masked_lm

    other = tmp_path / "other"
    other.write_text("zebra " * 2000)
    run = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "--vocabulary", "60"]
    words = []
    for path, more in ((other, []), (text, ["--resume"]), (text, [])):
        with pytest.raises(ProblemError, match="texts of 100000 tokens"):
            masked_lm.main([*run, "--text", str(path), "--length", "100000", *more])
        words.append("zebra" in masked_lm.read_tokenizer(tmp_path / "run").get_vocab())
    assert words == [True, True, False]
