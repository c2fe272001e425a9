"""Train an image classifier, M2-ViT or ViT, on MNIST-like files or on folders of images.

    python examples/image_classification.py --data /usr/share/datasets/fashion-mnist --output_dir runs/m2vit
    python examples/image_classification.py --data ... --output_dir runs/m2vit --resume          # after a kill
    python examples/image_classification.py --data ... --output_dir runs/vit --preset ViT-fashion
    torchrun --nproc-per-node 2 examples/image_classification.py --data imagenet --preset M2-ViT-b --output_dir runs/b

--data is a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k (.gz or not), or one with
the folders train and val, in them a folder for each class, in these its images.

Every option of transformers' TrainingArguments is one of this script: --num_train_epochs, --learning_rate, --bf16,
--gradient_checkpointing, --label_smoothing_factor, --seed, --save_steps, --torch_compile and so on. The folder gets
checkpoints, the model, the results and loss.png.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction, HfArgumentParser, TrainingArguments, set_seed

from m2gen.errors import ProblemError
from m2gen.models import M2ViTConfig, M2ViTForImageClassification
from m2gen.models.training import LossCurve, M2Trainer, last_checkpoint

DEFAULTS = {
    "learning_rate": 2e-3,
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

    def images(self, indices: Sequence[int]) -> Tensor:
        """(len(indices), channels, height, width), uint8."""


class IdxImages:
    """The images of an idx file, all in memory. Format: yann.lecun.com/exdb/mnist."""

    def __init__(self, folder: Path, part: str) -> None:
        images = torch.from_numpy(read_idx(folder, f"{part}-images-idx3-ubyte"))
        self.all = images[:, None]
        self.labels = torch.from_numpy(read_idx(folder, f"{part}-labels-idx1-ubyte")).long()
        self.shape = (1, images.shape[1], images.shape[2])

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.all[torch.as_tensor(indices)]


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The array of bytes in an idx file, which may be packed with gzip. Raises ProblemError for another content."""
    packed = folder / f"{name}.gz"
    path = packed if packed.exists() else folder / name
    content = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    dims = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content, ">u4", dims, offset=4).tolist()
    if not dims or len(content) != 4 + 4 * dims + int(np.prod(shape)):
        raise ProblemError(f"reading {path}", "it is not an idx file of bytes", "give one in the format of MNIST")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


class FolderImages:
    """The images in one folder for each class, read when they are asked for; the middle square, in colours."""

    def __init__(self, folder: Path, size: int) -> None:
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        found = [(path, i) for i, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
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
        return FolderImages(folder / "train", size), FolderImages(folder / "val", size)
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
    """The preset's model for these images, with the options' changes."""
    kinds = {name: type(value) for name, value in M2ViTConfig().to_dict().items()}
    changes: dict[str, Any] = {}
    for change in options.model_options:
        name, _, text = change.partition("=")
        if kinds.get(name) not in (int, float, str, bool):
            raise ProblemError(f"--model_options {change}", "M2ViTConfig has no such field", "use name=value")
        changes[name] = text == "True" if kinds[name] is bool else kinds[name](text)
    data = {"image_size": source.shape[1], "num_channels": source.shape[0]}
    data["num_labels"] = int(source.labels.max()) + 1
    return M2ViTConfig.preset(options.preset, **data, drop_path_rate=options.drop_path_rate, **changes)


def split(options: Options, folder: Path) -> tuple[Images, Images]:
    """What is trained on and what is evaluated on: the test images, or `hold_out` training images, the same always."""
    size = options.image_size or M2ViTConfig.preset(options.preset).image_size
    train, test = load(folder, size)
    rows, held_out = torch.arange(len(train.labels)), torch.arange(len(test.labels))
    if options.hold_out:
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        test, held_out, rows = train, shuffled[: options.hold_out], shuffled[options.hold_out :]
    scale = scale_of(train, rows)
    return Images(train, rows, scale), Images(test, held_out, scale)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of images whose most likely class is theirs."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def checkpoint(folder: str, resume: bool) -> str | None:
    """Where to go on from. Raises ProblemError for a new run where there is one already."""
    found = last_checkpoint(folder)
    if found is not None and not resume:
        raise ProblemError(f"a new run in {folder}", f"{found} is there", "add --resume, or use an empty folder")
    return found


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
    begin = checkpoint(arguments.output_dir, options.resume)
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
    main()
