"""Train an image classifier, M2-ViT or ViT, on MNIST-like files or on folders of images.

    python examples/image_classification.py --data /usr/share/datasets/fashion-mnist --output_dir runs/m2vit
    python examples/image_classification.py --data ... --output_dir runs/m2vit --resume          # after a kill
    python examples/image_classification.py --data ... --output_dir runs/vit --preset ViT-fashion
    torchrun --nproc-per-node 2 examples/image_classification.py --data imagenet --preset M2-ViT-b --output_dir runs/b

--data is a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k (.gz or not), or one with
the folders train and val, in them a folder for each class, in these its images.

Every option of transformers' TrainingArguments is one of this script: --num_train_epochs, --learning_rate, --bf16,
--gradient_checkpointing, --label_smoothing_factor, --seed, --save_steps, --torch_compile and so on. The defaults suit
the small models; for M2-ViT-b, HyenaViT's released settings are --learning_rate 2e-4 --weight_decay 0.01
--drop_path_rate 0.1 with 305 epochs of 1,024 images a step. The folder gets checkpoints, the model, the results and
loss.png.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction, HfArgumentParser, TrainingArguments, set_seed

from m2gen.errors import M2GenError, ProblemError
from m2gen.models import M2ViTConfig, M2ViTForImageClassification
from m2gen.models.training import LossCurve, M2Trainer, starting_point

DEFAULTS = {
    "learning_rate": 6e-3,
    "weight_decay": 0.05,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "label_smoothing_factor": 0.1,
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 500,
    "num_train_epochs": 10,
    "logging_steps": 20,
    "eval_strategy": "epoch",
    "save_steps": 200,
    "save_total_limit": 2,
    "report_to": "none",
    "dataloader_pin_memory": torch.cuda.is_available(),
    "remove_unused_columns": False,
}


@dataclass
class Options:
    """What to train on what, beside TrainingArguments."""

    data: str = field(metadata={"help": "a folder of idx files, or one with the folders train and val"})
    preset: str = field(default="M2-ViT-fashion", metadata={"help": "M2-ViT-b, ViT-b, M2-ViT-cifar, ViT-fashion, ..."})
    model_options: list[str] = field(
        default_factory=list, metadata={"help": "fields of M2ViTConfig: hidden_size=96 gated=False ..."}
    )
    image_size: int = field(default=0, metadata={"help": "of images in folders; default the preset's"})
    drop_path_rate: float = field(default=0.0, metadata={"help": "stochastic depth"})
    shift: int = field(default=2, metadata={"help": "move training images by up to so many pixels"})
    flip: bool = field(default=True, metadata={"help": "mirror every other training image"})
    hold_out: int = field(
        default=0, metadata={"help": "evaluate on so many images of the training set, which are then not trained on"}
    )
    filter_lr: float = 1e-3
    filter_weight_decay: float = 0.1
    position_lr: float = 1e-5
    resume: bool = field(default=False, metadata={"help": "go on from the folder's last whole checkpoint, if any"})


class Source(Protocol):
    """Images and their classes."""

    labels: Tensor  # (n,) int64
    shape: tuple[int, int, int]  # channels, height, width
    classes: list[str]  # their names

    def images(self, indices: Sequence[int]) -> Tensor:
        """(len(indices), channels, height, width), uint8."""


class IdxImages:
    """The images of an idx file, all in memory. Format: yann.lecun.com/exdb/mnist."""

    def __init__(self, folder: Path, part: str) -> None:
        images = torch.from_numpy(read_idx(folder, f"{part}-images-idx3-ubyte"))
        self.all = images[:, None]
        self.labels = torch.from_numpy(read_idx(folder, f"{part}-labels-idx1-ubyte")).long()
        if images.dim() != 3 or self.labels.shape != images.shape[:1] or not len(images):
            found = f"images {tuple(images.shape)}, labels {tuple(self.labels.shape)}"
            raise ProblemError(f"the images {part} in {folder}", found, "give (n, height, width) and (n,), n from 1 on")
        self.shape = (1, images.shape[1], images.shape[2])
        self.classes = [str(label) for label in range(int(self.labels.max()) + 1)]

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.all[torch.as_tensor(indices)]


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The array of bytes in an idx file, which may be packed with gzip. Raises ProblemError for another content."""
    packed = folder / f"{name}.gz"
    path = packed if packed.exists() else folder / name
    if not path.is_file():
        raise ProblemError(f"reading {path}", "there is no such file", "give all four files, packed with gzip or not")
    try:
        content = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        content = b""
    dims = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = np.frombuffer(content, ">u4", dims, offset=4).tolist() if 0 < 4 * dims <= len(content) - 4 else []
    if not shape or len(content) != 4 + 4 * dims + math.prod(shape):
        raise ProblemError(f"reading {path}", "it is not an idx file of bytes", "give one in the format of MNIST")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


class FolderImages:
    """The images in one folder for each class, read when they are asked for; the middle square, in colours."""

    def __init__(self, folder: Path, size: int) -> None:
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        found = [(path, i) for i, name in enumerate(self.classes) for path in sorted((folder / name).iterdir())]
        found = [(path, i) for path, i in found if not path.name.startswith(".")]  # what desktops leave behind
        if not found:
            raise ProblemError(
                f"images in {folder}", "there are none", "give a folder for each class, in it its images"
            )
        self.paths = [path for path, _ in found]
        self.labels = torch.tensor([label for _, label in found])
        self.shape = (3, size, size)

    def images(self, indices: Sequence[int]) -> Tensor:
        from PIL import Image, ImageOps  # only image folders need it

        size = self.shape[1:]
        squares = [ImageOps.fit(Image.open(self.paths[i]).convert("RGB"), size) for i in indices]
        return torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2)


def load(folder: Path, size: int) -> tuple[Source, Source]:
    """Training and test images. Raises ProblemError where neither kind of files is there."""
    if (folder / "train").is_dir():
        train, val = FolderImages(folder / "train", size), FolderImages(folder / "val", size)
        if train.classes != val.classes:  # they are numbered in their order
            found = f"train and val differ in {', '.join(sorted(set(train.classes) ^ set(val.classes)))}"
            raise ProblemError(f"the classes in {folder}", found, "give both a folder for every class")
        return train, val
    if list(folder.glob("train-images-idx3-ubyte*")):
        return IdxImages(folder, "train"), IdxImages(folder, "t10k")
    found = "it has neither train-images-idx3-ubyte nor a folder train"
    raise ProblemError(f"images in {folder}", found, "give a folder of either kind")


class Images(Dataset):
    """Rows of a source, normalised, moved and mirrored: pixel_values (C, S, S) float32 and labels, in whole batches.

    How an image is moved is a function of (seed, epoch, row) alone: a resumed run, another number of processes or of
    workers sees the same.
    """

    def __init__(self, source: Source, rows: Tensor, scale: tuple[Tensor, Tensor], seed: int = 0) -> None:
        self.source, self.rows, self.seed = source, rows, seed
        self.mean, self.std = scale
        self.shift, self.flip = 0, False
        self.set_epoch(0)

    def augmented(self, shift: int, flip: bool) -> Images:
        """The same images, moved by up to `shift` pixels both ways and, with `flip`, mirrored at times."""
        self.shift, self.flip = shift, flip
        self.set_epoch(0)
        return self

    def set_epoch(self, epoch: int) -> None:
        draw = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        n = len(self.rows)
        self.moves = torch.randint(0, 2 * self.shift + 1, (n, 2), generator=draw)
        self.mirrored = (torch.rand(n, generator=draw) < 0.5) & self.flip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch, already put together: pixel_values (n, C, S, S), labels (n,)."""
        rows = self.rows[indices]
        pixels = (self.source.images(rows.tolist()).float() - self.mean) / self.std
        if self.shift or self.flip:
            pixels = moved(pixels, self.moves[indices], self.shift, self.mirrored[indices])
        return {"pixel_values": pixels, "labels": self.source.labels[rows]}


def moved(pixels: Tensor, moves: Tensor, shift: int, mirrored: Tensor) -> Tensor:
    """pixels (n, C, S, S), each with the window at moves (n, 2) of itself with `shift` more pixels on all sides, then,
    where `mirrored` (n,), left and right exchanged. What was outside has the value of the corner."""
    n, channels, height, width = pixels.shape
    around = pixels[:, :, :1, :1].expand(n, channels, height + 2 * shift, width + 2 * shift).clone()
    around[:, :, shift : shift + height, shift : shift + width] = pixels
    rows = moves[:, :1] + torch.arange(height)
    columns = moves[:, 1:] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    picture = torch.arange(n)[:, None, None]
    return around.movedim(1, -1)[picture, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def scale_of(source: Source, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (1, C, 1, 1), over some thousand images."""
    some = source.images(rows[:: max(1, len(rows) // 5000)].tolist()).float()
    return some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True).clamp(min=1e-3)


def make_config(options: Options, source: Source) -> M2ViTConfig:
    """The preset's model for these images, with the options' changes. Raises ProblemError for a change that is none."""
    kinds = {name: type(value) for name, value in M2ViTConfig().to_dict().items()}
    data: dict[str, Any] = {"image_size": source.shape[1], "num_channels": source.shape[0]}
    data |= {"num_labels": len(source.classes), "id2label": dict(enumerate(source.classes))}
    data["label2id"] = {name: label for label, name in data["id2label"].items()}
    changes: dict[str, Any] = {}
    for change in options.model_options:
        name, _, text = change.partition("=")
        if kinds.get(name) not in (int, float, str, bool):
            raise ProblemError(f"--model_options {change}", "M2ViTConfig has no such field", "use name=value")
        if name in (*data, "drop_path_rate"):
            raise ProblemError(f"--model_options {change}", "it has another source", "use the data or --drop_path_rate")
        changes[name] = value_of(change, kinds[name], text)
    return M2ViTConfig.preset(options.preset, **data, drop_path_rate=options.drop_path_rate, **changes)


def value_of(change: str, kind: type, text: str) -> Any:
    """A field's value. Raises ProblemError for a text that is none of its kind."""
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        what = "True or False" if kind is bool else f"of type {kind.__name__}"
        raise ProblemError(f"--model_options {change}", f"{text!r} is not {what}", "use name=value") from None


def split(options: Options, folder: Path) -> tuple[Images, Images]:
    """What is trained on and what is evaluated on: the test images, or `hold_out` training images, the same always."""
    size = options.image_size or M2ViTConfig.preset(options.preset).image_size
    train, test = load(folder, size)
    rows, held_out = torch.arange(len(train.labels)), torch.arange(len(test.labels))
    if not 0 <= options.hold_out < len(rows):
        found = f"the training set has {len(rows)} images"
        raise ProblemError(f"--hold_out {options.hold_out}", found, "hold out fewer, or 0 to evaluate on the test set")
    if options.hold_out:
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        test, held_out, rows = train, shuffled[: options.hold_out], shuffled[options.hold_out :]
    scale = scale_of(train, rows)
    return Images(train, rows, scale), Images(test, held_out, scale)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of images whose most likely class is theirs."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make_trainer(options: Options, arguments: TrainingArguments) -> M2Trainer:
    """Reads the images and makes the model."""
    train, held_out = split(options, Path(options.data))
    train.seed = arguments.seed
    set_seed(arguments.seed)
    return M2Trainer(
        model=M2ViTForImageClassification(make_config(options, train.source)),
        args=arguments,
        train_dataset=train.augmented(options.shift, options.flip),
        eval_dataset=held_out,
        data_collator=lambda batch: batch,  # `Images` gives whole batches
        compute_metrics=accuracy,
        callbacks=[LossCurve(label="cross-entropy (nats)")],
        filter_lr=options.filter_lr,
        filter_weight_decay=options.filter_weight_decay,
        position_lr=options.position_lr,
    )


def main(command: list[str] | None = None) -> M2Trainer:
    """Train and evaluate as the command line says; returns the trainer, with its log."""
    parser = HfArgumentParser((Options, TrainingArguments), description=__doc__.splitlines()[0])
    parser.set_defaults(**DEFAULTS)
    options, arguments = parser.parse_args_into_dataclasses(command)
    begin = starting_point(arguments, options.resume)
    trainer = make_trainer(options, arguments)
    counts = f"{len(trainer.train_dataset)} images, evaluated on {len(trainer.eval_dataset)}"
    if trainer.is_world_process_zero():
        print(f"{options.preset}: {trainer.model.num_parameters():,} parameters; {counts}", flush=True)
    trainer.train(resume_from_checkpoint=begin)
    results = {**trainer.evaluate(), "parameters": trainer.model.num_parameters()}
    trainer.log_metrics("eval", results)
    trainer.save_metrics("eval", results)
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    try:
        main()
    except M2GenError as error:  # it says what to do
        raise SystemExit(f"Error: {error}") from None
