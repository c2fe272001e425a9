"""The example of image classification: what it reads, how it moves images, and a run that is interrupted."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples import image_classification as example  # noqa: E402
from m2gen.errors import ProblemError  # noqa: E402
from m2gen.models import M2ViTForImageClassification  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = {
    "model_options": ["hidden_size=16", "intermediate_size=32", "num_hidden_layers=2", "hyena_filter_order=8"],
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_steps": 2,
    "learning_rate": 3e-3,
    "drop_path_rate": 0.2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """32 and 16 images of 8 x 8: noise, the upper or the lower half bright. Packed and not."""
    folder, random = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for part, n, ending in (("train", 32, ".gz"), ("t10k", 16, "")):
        labels = np.arange(n) % 2
        images = random.integers(0, 60, (n, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[4 * label : 4 * label + 4] += 150
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", labels)
    return folder


def command(data: Path, folder: Path, **changes: Any) -> list[str]:
    options = {**SMALL, "data": data, "output_dir": folder, **changes}
    listed = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [text for name, values in listed.items() for text in (f"--{name}", *map(str, values))]


def losses(trainer: Any) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def test_idx_files(data: Path) -> None:
    train, test = example.load(data, 0)
    assert (train.shape, len(train.labels), len(test.labels)) == ((1, 8, 8), 32, 16)
    assert train.labels.tolist() == [0, 1] * 16
    bright = train.images([1, 0, 5]).float().mean(-1)[:, 0]
    assert (bright[:, :4].mean(1) < 100).tolist() == [True, False, True]
    (data / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\1\0\0\0\1\0\0\0\0"))
    with pytest.raises(ProblemError, match="not an idx file of bytes"):
        example.load(data, 0)
    for broken in (b"", gzip.compress(b"\0\0\x08"), gzip.compress(b"\0\0\x08\3\0\0"), b"not packed"):
        (data / "train-images-idx3-ubyte.gz").write_bytes(broken)
        with pytest.raises(ProblemError, match="not an idx file of bytes"):
            example.load(data, 0)
    with pytest.raises(ProblemError, match="neither train-images"):
        example.load(data.parent, 0)


def test_idx_files_that_do_not_belong_together(data: Path) -> None:
    write_idx(data / "t10k-labels-idx1-ubyte", np.arange(15) % 2)
    with pytest.raises(ProblemError, match=r"images \(16, 8, 8\), labels \(15,\)"):
        example.load(data, 0)
    (data / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ProblemError, match="no such file"):
        example.load(data, 0)


def test_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "val"):
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                image.new("RGB", (20, 12 + i), colour).save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "train" / "red" / ".hidden").touch()
    train, _ = example.load(tmp_path, 8)
    assert train.labels.tolist() == [0, 0, 1, 1]
    config = example.make_config(example.Options(data=str(tmp_path), preset="ViT-cifar"), train)
    assert config.num_labels == 2 and config.id2label == {0: "blue", 1: "red"} and config.label2id["red"] == 1
    pixels = train.images([3, 0])
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.uint8
    assert pixels.float().mean((2, 3)).tolist() == [[200, 0, 0], [0, 0, 200]]
    shutil.rmtree(tmp_path / "val" / "blue")  # red would be number 0 there, as blue is in training
    with pytest.raises(ProblemError, match="train and val differ in blue"):
        example.load(tmp_path, 8)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(ProblemError, match="there are none"):
        example.load(tmp_path, 8)


def test_moving_images() -> None:
    """The middle window gives the image back; others shift it; a mirrored one is the flip of that."""
    pixels = torch.rand(3, 2, 5, 5)
    moves, mirrored = torch.tensor([[2, 2], [0, 3], [4, 1]]), torch.tensor([False, False, True])
    found = example.moved(pixels, moves, 2, mirrored)
    assert torch.equal(found[0], pixels[0])
    assert torch.equal(found[1][:, 2:, :4], pixels[1][:, :3, 1:]), "two rows down, one column to the left"
    assert torch.equal(found[1][:, :2], pixels[1][:, :1, :1].expand(2, 2, 5))
    assert torch.equal(found[2].flip(-1)[:, :3, 1:], pixels[2][:, 2:, :4])


def test_what_is_drawn_depends_on_seed_epoch_and_row_alone(data: Path) -> None:
    train, _ = example.load(data, 0)
    rows = torch.arange(32)

    def batch(seed: int, epoch: int, wanted: list[int]) -> torch.Tensor:
        images = example.Images(train, rows, example.scale_of(train, rows), seed).augmented(2, True)
        images.set_epoch(epoch)
        return images.__getitems__(wanted)["pixel_values"]

    first = batch(1, 2, [3, 4, 5])
    assert torch.equal(first[[2, 0]], batch(1, 2, [5, 3]))
    assert not torch.equal(first, batch(1, 3, [3, 4, 5]))
    assert not torch.equal(first, batch(2, 2, [3, 4, 5]))


def test_held_out_images_are_not_trained_on(data: Path) -> None:
    options = example.Options(data=str(data), hold_out=10)
    train, held_out = example.split(options, data)
    assert sorted([*train.rows.tolist(), *held_out.rows.tolist()]) == list(range(32))
    assert len(held_out) == 10 and held_out.source is train.source
    for count in (-1, 32):
        with pytest.raises(ProblemError, match="has 32 images"):
            example.split(example.Options(data=str(data), hold_out=count), data)


def test_options_of_the_model(data: Path) -> None:
    source = example.load(data, 0)[0]
    options = example.Options(data="", model_options=["patch_size=2", "gated=False", "pooling=cls", "hyena_w=3"])
    config = example.make_config(options, source)
    assert (config.image_size, config.num_channels, config.num_labels) == (8, 1, 2)
    assert (config.patch_size, config.gated, config.pooling, config.hyena_w) == (2, False, "cls", 3)
    with pytest.raises(ProblemError, match="no such field"):
        example.make_config(example.Options(data="", model_options=["size=3"]), source)
    assert example.make_config(example.Options(data="", model_options=["patch_size=2", "gated=true"]), source).gated
    for change, found in (
        ("gated=yes", "not True or False"),
        ("patch_size=x", "not of type int"),
        ("image_size=3", "source"),
    ):
        with pytest.raises(ProblemError, match=found):
            example.make_config(example.Options(data="", model_options=[change]), source)


class Interrupted(RuntimeError):
    pass


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise Interrupted


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, with shifts, flips and stochastic depth: the same losses, no step lost or repeated."""
    whole = example.main(command(data, tmp_path / "whole"))
    assert [step for step, _ in losses(whole)] == list(range(1, 13))
    make = example.make_trainer
    with monkeypatch.context() as patch:
        patch.setattr(example, "make_trainer", lambda *a: _interrupted(make(*a)))
        with pytest.raises(Interrupted):
            example.main(command(data, tmp_path / "parts"))
    with pytest.raises(ProblemError, match="Add --resume"):
        example.main(command(data, tmp_path / "parts"))
    parts = example.main([*command(data, tmp_path / "parts"), "--resume", "True"])
    assert losses(parts) == losses(whole)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)


def _interrupted(trainer: Any) -> Any:
    trainer.add_callback(Interrupt())
    return trainer


def test_a_run_in_bfloat16_with_checkpointing(data: Path, tmp_path: Path) -> None:
    """Both flags; the folder holds the model, the results and a picture."""
    trainer = example.main(command(data, tmp_path, bf16=True, gradient_checkpointing=True, preset="ViT-fashion"))
    assert all(np.isfinite(loss) for _, loss in losses(trainer))
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert results["eval_accuracy"] >= 0.5 and results["parameters"] == trainer.model.num_parameters()
    loaded = M2ViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.mixer == "attention"
