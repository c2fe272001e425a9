"""GLUE from files laid out like the real ones: every task is read, measured, and two are fine-tuned from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import EvalPrediction

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import glue
import masked_lm

from m2gen.errors import ProblemError
from m2gen.models import M2BertConfig, M2BertModel

WORDS = [
    "a",
    "good",
    "film",
    "that",
    "is",
    "never",
    "dull",
    "and",
    "a",
    "bad",
    "one",
    "that",
    "is",
    "long",
    "and",
    "dull",
    "and",
    "loud",
]
HEADERS = {
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label",
    "rte": "index sentence1 sentence2 label",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "qnli": "index question sentence label",
    "sst2": "sentence label",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "mrpc": "Quality,#1 ID,#2 ID,#1 String,#2 String",
}


def write(folder: Path, name: str, rows: int = 24) -> None:
    """Files of the task; a label that one word of the text tells."""
    task = glue.TASKS[name]
    header = HEADERS.get(name, "")
    columns = header.split(",") if "," in header else header.split()
    for seed, file in enumerate(("train.tsv", *task.dev)):
        random = np.random.default_rng(seed)
        lines = ["\t".join(columns)] if columns else []
        for i in range(rows):
            kind = int(random.integers(max(2, len(task.classes))))
            text = " ".join([*random.choice(WORDS, 5), ("good", "bad", "long")[kind], 'he said "'])
            label = task.classes[kind] if task.classes else f"{2.5 * kind:.3f}"
            if not columns:
                lines.append("\t".join(["src", label, "*", text]))
                continue
            cells = {column: str(i) for column in columns}
            cells |= {str(column): text for column in task.sentences} | {str(task.label): label}
            lines.append("\t".join(cells[column] for column in columns))
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", glue.TASKS)
def test_every_task_is_read(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    task = glue.TASKS[name]
    texts, labels = glue.read(tmp_path / "train.tsv", task)
    assert len(texts) == len(labels) == 24
    for sentences, label in zip(texts, labels, strict=True):
        assert len(sentences) == len(task.sentences) and all(s.endswith('he said "') for s in sentences)
        word = sentences[0].split()[5]
        assert label == ("good", "bad", "long").index(word) * (1 if task.classes else 2.5)


@pytest.mark.parametrize("name", glue.TASKS)
@pytest.mark.parametrize("size", glue.SIZES)
def test_published_settings(name: str, size: str) -> None:
    found = glue.published(name, size)
    assert 1e-5 <= found["learning_rate"] <= 8e-5
    # a share of the weights that goes in each step
    assert found["weight_decay"] * found["learning_rate"] <= 8e-5


def test_what_is_not_laid_out_like_the_task(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="not there"):
        glue.read(tmp_path / "train.tsv", glue.TASKS["rte"])
    write(tmp_path, "sst2")
    with pytest.raises(ProblemError, match="no column 'sentence1'"):
        glue.read(tmp_path / "train.tsv", glue.TASKS["rte"])
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na film\tmaybe\n")
    with pytest.raises(ProblemError, match=r"line 2: the label is 'maybe'\. Use 0, 1"):
        glue.read(tmp_path / "train.tsv", glue.TASKS["sst2"])
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na film\n")
    with pytest.raises(ProblemError, match="1 of 1 lines are short, line 2 first"):
        glue.read(tmp_path / "train.tsv", glue.TASKS["sst2"])


def test_single_lines_cut_short_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many readers of QQP's files do, but not in silence; the others keep their labels."""
    write(tmp_path, "qqp", 200)
    path = tmp_path / "train.tsv"
    texts, labels = glue.read(path, glue.TASKS["qqp"])
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:8], "5\t1\ta question cut", *lines[8:]]) + "\n", encoding="utf-8")
    assert glue.read(path, glue.TASKS["qqp"]) == (texts, labels)
    assert "1 of 201 lines are short, line 9 first; left out" in capsys.readouterr().out


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    write(tmp_path, "mrpc")
    plain = glue.read(tmp_path / "train.tsv", glue.TASKS["mrpc"])
    content = (tmp_path / "train.tsv").read_bytes()
    (tmp_path / "train.tsv").write_bytes(b"\xef\xbb\xbf" + content)
    assert glue.read(tmp_path / "train.tsv", glue.TASKS["mrpc"]) == plain


def test_a_file_without_sentences(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(ProblemError, match="it has none"):
        glue.read(tmp_path / "train.tsv", glue.TASKS["sst2"])


def test_measures() -> None:
    guess, labels = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    logits = np.stack([1.0 - guess, guess.astype(float)], 1)

    def measured(task: str, predictions: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        return glue.metrics(task)(EvalPrediction(predictions=predictions, label_ids=truth))

    assert measured("mrpc", logits, labels) == pytest.approx({"accuracy": 3 / 5, "f1": 4 / 6})
    assert measured("rte", logits, labels) == {"accuracy": 3 / 5}
    # (TP TN - FP FN) / sqrt of the four sums
    assert measured("cola", logits, labels) == pytest.approx({"matthews": (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5})
    assert measured("cola", logits, np.ones(5)) == {"matthews": 0.0}
    scores = measured("stsb", np.array([[0.0], [1.0], [3.0]]), np.array([0.0, 1.0, 2.0]))
    assert scores["spearman"] == pytest.approx(1) and 0.9 < scores["pearson"] < 1


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    tokenizer = masked_lm.make_tokenizer(folder, [" ".join(WORDS) + " he said"], 80)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 16}
    M2BertModel(M2BertConfig(vocab_size=len(tokenizer), hyena_filter_order=16, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "rows"), [("qnli", 160), ("stsb", 64)])
def test_fine_tuning(name: str, rows: int, start: Path, tmp_path: Path) -> None:
    """It learns what the word tells, and a run that is finished stays as it is."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    write(data, name, rows)
    words = f"--task {name} --data {data} --model_path {start} --output_dir {out} --length 32 --use_cpu --seed 1 "
    words += "--learning_rate 1e-2 --num_train_epochs 12 --save_total_limit 1 --disable_tqdm true"
    found = glue.main(words.split())["dev.tsv"]
    if name == "qnli":  # pooled over all tokens: a model this small learns it in seconds
        assert found["dev_accuracy"] > 0.8, found
    else:
        assert -1 <= found["dev_pearson"] <= 1 and found["dev_loss"] < 20, "one number, near the scores of 0 to 5"
    with pytest.raises(ProblemError, match="Add --resume"):
        glue.main(words.split())
    again = glue.main([*words.split(), "--resume"])["dev.tsv"]
    assert again["dev_loss"] == found["dev_loss"]
    assert (out / "loss.png").is_file()
