"""Train a masked language model, M2-BERT or BERT, on text files; by default on the Python standard library.

    python examples/masked_lm.py --output_dir runs/m2bert --max_steps 2000
    python examples/masked_lm.py --output_dir runs/m2bert --max_steps 2000 --resume     # after a kill
    python examples/masked_lm.py --output_dir runs/bert --model bert --learning_rate 5e-4
    torchrun --nproc-per-node 2 examples/masked_lm.py --output_dir runs/two --text a.txt b.txt --bf16

Every option of transformers' TrainingArguments is one of this script: --per_device_train_batch_size, --bf16,
--gradient_checkpointing, --gradient_accumulation_steps, --seed, --save_steps, --eval_steps, --use_cpu and so on. The
optimizer's defaults are those published for M2-BERT (arXiv 2310.12109 and its released settings): AdamW at 8e-4, betas
0.9 and 0.98, epsilon 1e-6, weights decaying by 1e-5 a step (0.0125 times the rate), linear decay to 2 % after 6 % of
warm-up, gradients cut at 1; 30 % of the words are masked in training and 15 % in evaluation. The folder gets the
tokenizer, checkpoints, the model, loss.png.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import SchedulerType

from m2gen.demo.data import load_corpus
from m2gen.errors import M2GenError, ProblemError
from m2gen.models import M2BertConfig, M2BertForMaskedLM
from m2gen.models.training import LossCurve, M2Trainer, starting_point

IGNORE = -100  # a label that does not count
PUBLISHED = {
    "learning_rate": 8e-4,
    "weight_decay": 1e-5 / 8e-4,  # the released optimizer's decay is not multiplied by the rate, PyTorch's is
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
    "warmup_steps": 0.06,
    "lr_scheduler_type": SchedulerType.POLYNOMIAL,
}
CONVENIENT = {"logging_steps": 10, "eval_strategy": "steps", "eval_steps": 200, "save_steps": 200}


@dataclass
class Options:
    """What to train on what, beside TrainingArguments."""

    model: Literal["m2bert", "bert"] = "m2bert"
    start_from: str | None = field(default=None, metadata={"help": "a folder with a model and its tokenizer"})
    width: int = field(default=768, metadata={"help": "of the layers; 768 and 12 layers are M2-BERT-80M and BERT-base"})
    layers: int = 12
    heads: int = field(default=12, metadata={"help": "of BERT's attention"})
    filter_width: int = field(default=128, metadata={"help": "of M2-BERT's filter networks"})
    dropout: float = 0.1
    length: int = field(default=512, metadata={"help": "tokens of a text, [CLS] and [SEP] among them"})
    vocabulary: int = field(default=8192, metadata={"help": "words of the WordPiece tokenizer that is trained first"})
    tokenizer: str | None = field(default=None, metadata={"help": "a folder with one, instead of training it"})
    text: list[str] = field(default_factory=list, metadata={"help": "text files; default the standard library"})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "text files to evaluate on; default the last tenth of each file"}
    )
    mask: float = 0.3
    mask_held_out: float = 0.15
    filter_lr: float = 1e-3
    filter_weight_decay: float = 0.1
    position_lr: float = 1e-5
    resume: bool = field(default=False, metadata={"help": "go on from the folder's last whole checkpoint, if any"})


def read_file(path: str) -> str:
    """A file's text. Raises ProblemError where there is none, or nothing in it."""
    text = Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).is_file() else ""
    if not text:
        found = "it is empty" if Path(path).is_file() else "there is no such file"
        raise ProblemError(f"the text {path}", found, "give files of text")
    return text


def read_texts(paths: list[str], held_out: list[str]) -> tuple[list[str], list[str]]:
    """Texts to train on and texts held out: files as given, or the last tenth of each, or the standard library's."""
    if not paths:
        corpus = load_corpus()  # whole files are held out
        return _documents(corpus.train), _documents(corpus.held_out)
    texts = [read_file(path) for path in paths]
    if held_out:
        return texts, [read_file(path) for path in held_out]
    cuts = [len(text) * 9 // 10 for text in texts]
    pairs = list(zip(texts, cuts, strict=True))
    return [text[:cut] for text, cut in pairs], [text[cut:] for text, cut in pairs]


def _documents(joined: Tensor) -> list[str]:
    return bytes(joined.numpy()).decode("utf-8", errors="replace").split("\0")


def make_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int) -> BertTokenizer:
    """A cased WordPiece tokenizer, trained on `texts` and kept in `folder`. Ties of frequency are broken at random."""
    blank = BertTokenizer(do_lower_case=False)
    blank.train_new_from_iterator(texts, vocabulary, show_progress=False).save_pretrained(folder)
    return BertTokenizer.from_pretrained(folder)


def read_tokenizer(folder: Path) -> BertTokenizer:
    """The one that is there. Raises ProblemError where there is none: another would number words anew."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        found = "it has neither tokenizer.json nor vocab.txt"
        raise ProblemError(f"the tokenizer in {folder}", found, "give a folder with one, such as a model's")
    return BertTokenizer.from_pretrained(folder)


def get_tokenizer(options: Options, arguments: TrainingArguments, texts: Iterable[str]) -> BertTokenizer:
    """The tokenizer that is given, a model's, with --resume the run's, or a new one, which one process trains.

    A new run trains its own even where one is in the folder: that may be another text's.
    """
    if given := options.tokenizer or options.start_from:
        return read_tokenizer(Path(given))
    folder = Path(arguments.output_dir)
    kept = options.resume and (folder / "tokenizer.json").is_file()
    with arguments.main_process_first(local=False):
        if kept or arguments.process_index:
            return read_tokenizer(folder)
        return make_tokenizer(folder, texts, options.vocabulary)


def windows(texts: list[str], tokenizer: BertTokenizer, length: int) -> Tensor:
    """All texts one after the other, [SEP] between them, cut into rows [CLS] ... [SEP]: (n, length), int64.

    What does not fill the last row is left out. Raises ProblemError where not one row comes out or nothing fits in it.
    """
    if length < 3:
        raise ProblemError(f"texts of {length} tokens", "[CLS] and [SEP] are two of them", "use 3 or more")
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    joined = list(itertools.chain.from_iterable([*text, tokenizer.sep_token_id] for text in ids))
    rows = len(joined) // (length - 2)
    if not rows:
        found = f"the text has {len(joined)} tokens"
        raise ProblemError(f"texts of {length} tokens", found, "give more text, or a smaller length")
    body = torch.tensor(joined[: rows * (length - 2)]).view(rows, length - 2)
    first, last = (torch.full((rows, 1), id) for id in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    return torch.cat([first, body, last], dim=1)


class MaskedWindows(Dataset):
    """Rows of tokens (n, L), masked as BERT does (arXiv 1810.04805, section 3.1), with labels at masked positions.

    Of each row's words a share `rate` is to be guessed: 80 % of them read [MASK], 10 % any word, 10 % themselves. What
    is masked is a function of (seed, epoch, row) alone: a resumed run, another number of processes or of workers sees
    the same. With `fixed` it is the same in all epochs.
    """

    def __init__(self, rows: Tensor, tokenizer: BertTokenizer, rate: float, seed: int, fixed: bool = False) -> None:
        self.rows, self.rate, self.seed, self.fixed, self.epoch = rows.numpy(), rate, seed, fixed, 0
        self.mask_id, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.special = np.array(sorted(tokenizer.all_special_ids))
        self.words = np.setdiff1d(np.arange(self.vocabulary), self.special)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids and labels, both (L,) int64."""
        row = self.rows[index]
        random = np.random.default_rng([self.seed, self.epoch, index])
        guessed = (random.random(row.shape) < self.rate) & ~np.isin(row, self.special)
        way = random.random(row.shape)
        seen = np.where(guessed & (way < 0.8), self.mask_id, row)
        seen = np.where(guessed & (way >= 0.9), random.choice(self.words, row.shape), seen)
        labels = np.where(guessed, row, IGNORE)
        return {"input_ids": torch.from_numpy(seen), "labels": torch.from_numpy(labels)}


def make_model(options: Options, vocabulary: int) -> PreTrainedModel:
    """The model, new or from a folder; M2-BERT's positions grow where the length asks for more."""
    if options.start_from is not None:
        return _loaded(options)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": options.width,
        "num_hidden_layers": options.layers,
        "intermediate_size": 4 * options.width,
        "max_position_embeddings": options.length,
        "hidden_dropout_prob": options.dropout,
    }
    if options.model == "m2bert":
        return M2BertForMaskedLM(M2BertConfig(**sizes, hyena_filter_order=options.filter_width))
    attention = {"num_attention_heads": options.heads, "attention_probs_dropout_prob": options.dropout}
    return BertForMaskedLM(BertConfig(**sizes, **attention, attn_implementation="sdpa"))


def _loaded(options: Options) -> PreTrainedModel:
    if options.model == "bert":
        return BertForMaskedLM.from_pretrained(options.start_from)
    return M2BertForMaskedLM.from_pretrained(options.start_from, max_position_embeddings=options.length)


def make_trainer(options: Options, arguments: TrainingArguments) -> M2Trainer:
    """Reads the text, makes tokenizer, data and model."""
    if arguments.lr_scheduler_type == SchedulerType.POLYNOMIAL and not arguments.lr_scheduler_kwargs:
        arguments.lr_scheduler_kwargs = {"lr_end": 0.02 * arguments.learning_rate, "power": 1.0}  # a straight line
    texts = read_texts(options.text, options.held_out)
    tokenizer = get_tokenizer(options, arguments, texts[0])
    rows, held_out = (windows(part, tokenizer, options.length) for part in texts)
    set_seed(arguments.seed)
    return M2Trainer(
        model=make_model(options, len(tokenizer)),
        args=arguments,
        train_dataset=MaskedWindows(rows, tokenizer, options.mask, arguments.seed),
        eval_dataset=MaskedWindows(held_out, tokenizer, options.mask_held_out, seed=0, fixed=True),
        processing_class=tokenizer,
        callbacks=[LossCurve(label="masked-LM loss (nats per word)")],
        filter_lr=options.filter_lr,
        filter_weight_decay=options.filter_weight_decay,
        position_lr=options.position_lr,
    )


def main(command: list[str] | None = None) -> M2Trainer:
    """Train and evaluate as the command line says; returns the trainer, with its log."""
    parser = HfArgumentParser((Options, TrainingArguments), description=__doc__.splitlines()[0])
    parser.set_defaults(**PUBLISHED, **CONVENIENT, prediction_loss_only=True, report_to="none")
    options, arguments = parser.parse_args_into_dataclasses(command)
    begin = starting_point(arguments, options.resume)
    kept = options.start_from is None and (Path(arguments.output_dir) / "tokenizer.json").exists()
    if begin is None and kept and arguments.process_index == 0:
        print(f"the tokenizer is the one in {arguments.output_dir}, whatever --text and --vocabulary say", flush=True)
    trainer = make_trainer(options, arguments)
    sizes = f"{len(trainer.train_dataset)} texts of {options.length} tokens, {len(trainer.eval_dataset)} held out"
    if trainer.is_world_process_zero():
        print(f"{options.model}: {trainer.model.num_parameters():,} parameters; {sizes}", flush=True)
    trainer.train(resume_from_checkpoint=begin)
    trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    try:
        main()
    except M2GenError as error:  # it says what to do
        raise SystemExit(f"Error: {error}") from None
