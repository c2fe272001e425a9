"""Train a causal language model, M2-GPT or a Transformer, byte by byte; by default on the Python standard library.

    python examples/causal_lm.py --output_dir runs/m2gpt --max_steps 3000
    python examples/causal_lm.py --output_dir runs/m2gpt --max_steps 3000 --resume     # after a kill
    python examples/causal_lm.py --output_dir runs/llama --model transformer --learning_rate 3e-3 --max_steps 3000
    torchrun --nproc-per-node 2 examples/causal_lm.py --output_dir runs/two --text a.txt b.txt --bf16

The Transformer is Llama's (rotary positions, SwiGLU, RMSNorm, SDPA attention), of as many layers and parameters as the
M2-GPT that the same options give. Every option of transformers' TrainingArguments is one of this script:
--per_device_train_batch_size, --bf16, --gradient_checkpointing, --seed, --save_steps, --eval_steps, --use_cpu and so
on. The folder gets checkpoints, the model, and loss.png in bits per byte; a sample is printed at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import SchedulerType

from m2gen.demo.data import VOCAB, load_corpus
from m2gen.errors import M2GenError, ProblemError
from m2gen.models import M2GPTForCausalLM, M2GPTPretrainedConfig
from m2gen.models.training import LossCurve, M2Trainer, starting_point

DEFAULTS = {
    "learning_rate": 5e-3,
    "weight_decay": 0.05,
    "adam_beta2": 0.95,
    "warmup_steps": 0.03,
    "lr_scheduler_type": "cosine_with_min_lr",
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "logging_steps": 20,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "save_steps": 500,
    "prediction_loss_only": True,
    "report_to": "none",
}


@dataclass
class Options:
    """What to train on what, beside TrainingArguments."""

    model: Literal["m2gpt", "transformer"] = "m2gpt"
    width: int = field(default=160, metadata={"help": "of M2-GPT; the Transformer's follows from the parameters"})
    layers: int = 4
    length: int = field(default=512, metadata={"help": "bytes of a window: the context"})
    causal: Literal["fft", "monarch"] = field(default="fft", metadata={"help": "M2-GPT's causal parameterisation"})
    filter_width: int = field(default=32, metadata={"help": "of M2-GPT's filter networks"})
    filter_layers: int = field(default=0, metadata={"help": "their inner layers"})
    filter_heads: int = field(default=1, metadata={"help": "heads that share filters"})
    fast_decay: float = field(default=0.02, metadata={"help": "windows of the filters, in units of the length"})
    slow_decay: float = 1.0
    head_width: int = field(default=48, metadata={"help": "of the Transformer's attention"})
    dropout: float = field(default=0.0, metadata={"help": "of M2-GPT and of the attention"})
    text: list[str] = field(default_factory=list, metadata={"help": "text files; default the standard library"})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "text files to evaluate on; default the last tenth of each file"}
    )
    evaluated: int = field(default=131_072, metadata={"help": "held-out bytes, in windows spread evenly"})
    filter_lr: float | None = field(default=None, metadata={"help": "default 0.6 of the learning rate"})
    filter_weight_decay: float = 0.0
    sampled: int = field(default=200, metadata={"help": "bytes to generate at the end"})
    prompt: str = "def "
    resume: bool = field(default=False, metadata={"help": "go on from the folder's last whole checkpoint, if any"})


class Windows(Dataset):
    """Windows of `length` bytes of a text (uint8, one axis), as input_ids and labels, both (length,) int64.

    They lie end to end, shifted by a part of a window that is a function of (seed, epoch) alone: a resumed run sees the
    same, and later epochs other windows. With `count` so many windows are spread evenly, the same in all epochs.

    Raises ProblemError for a text shorter than two windows.
    """

    def __init__(self, text: Tensor, length: int, seed: int, count: int | None = None) -> None:
        if text.numel() < 2 * length:
            found = f"the text has {text.numel()}"
            raise ProblemError(f"windows of {length} bytes", found, "use a shorter length or more text")
        self.text, self.length, self.seed = text, length, seed
        whole = text.numel() // length - 1  # one less than fit, for the shift
        self.count = whole if count is None else min(count, whole)
        self.stride = length if count is None else (text.numel() - length) // max(self.count - 1, 1)
        self.even = count is not None
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.shift = 0 if self.even else int(np.random.default_rng([self.seed, epoch]).integers(self.length))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.text[self.shift + index * self.stride :][: self.length].long()
        return {"input_ids": ids, "labels": ids}


def read_file(path: str) -> bytes:
    """A file's bytes. Raises ProblemError where there is none, or nothing in it."""
    text = Path(path).read_bytes() if Path(path).is_file() else b""
    if not text:
        found = "it is empty" if Path(path).is_file() else "there is no such file"
        raise ProblemError(f"the text {path}", found, "give files of text")
    return text


def read_bytes(paths: list[str], held_out: list[str]) -> tuple[Tensor, Tensor]:
    """Bytes to train on and bytes held out, uint8: of files as given, of the last tenth of each, or of the library."""
    if not paths:
        corpus = load_corpus()  # whole files are held out
        return corpus.train, corpus.held_out
    texts = [read_file(path) for path in paths]
    if held_out:
        others = [read_file(path) for path in held_out]
    else:
        others = [text[len(text) * 9 // 10 :] for text in texts]
        texts = [text[: len(text) * 9 // 10] for text in texts]
    train, held = (np.frombuffer(b"\0".join(part), dtype=np.uint8).copy() for part in (texts, others))
    return torch.from_numpy(train), torch.from_numpy(held)


def m2gpt_config(options: Options) -> M2GPTPretrainedConfig:
    filters = {
        "width": options.filter_width,
        "inner_layers": options.filter_layers,
        "heads": options.filter_heads,
        "fast_decay": options.fast_decay,
        "slow_decay": options.slow_decay,
    }
    return M2GPTPretrainedConfig(
        vocab_size=VOCAB,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        max_position_embeddings=options.length,
        causal=options.causal,
        dropout=options.dropout,
        filter_options=filters,
        bos_token_id=None,
        eos_token_id=None,
    )


def transformer_config(options: Options, parameters: int) -> LlamaConfig:
    """Llama of `options.layers` layers whose parameters are as near to `parameters` as its sizes allow.

    Its width d is the multiple of head_width nearest to where the inner width would be the usual 8/3 d; the inner one,
    a multiple of 8, makes up for what that leaves.
    """
    layers, step = options.layers, options.head_width
    d = step * max(1, round(math.sqrt(parameters / (12 * layers)) / step))
    attention = VOCAB * d + d + layers * (4 * d * d + 2 * d)
    inner = 8 * max(1, round((parameters - attention) / (3 * d * layers) / 8))
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=d,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=d // step,
        max_position_embeddings=options.length,
        attention_dropout=options.dropout,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )


def make_model(options: Options) -> PreTrainedModel:
    """A new model. Raises ProblemError for a Transformer that is more than 2 % off M2-GPT's parameters."""
    if options.model == "m2gpt":
        return M2GPTForCausalLM(m2gpt_config(options))
    with torch.device("meta"):
        wanted = M2GPTForCausalLM(m2gpt_config(options)).num_parameters()
    model = LlamaForCausalLM(transformer_config(options, wanted))
    if abs(model.num_parameters() / wanted - 1) > 0.02:
        found = f"the nearest has {model.num_parameters():,}"
        raise ProblemError(f"a Transformer of {wanted:,} parameters", found, "change the widths or layers")
    return model


def make_trainer(options: Options, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback]) -> M2Trainer:
    """Reads the text, makes data and model. Raises ProblemError for texts, sizes and a prompt that do not fit."""
    check_prompt(options)  # now, not after hours of training
    if arguments.lr_scheduler_type == SchedulerType.COSINE_WITH_MIN_LR and not arguments.lr_scheduler_kwargs:
        arguments.lr_scheduler_kwargs = {"min_lr_rate": 0.02}
    train, held_out = read_bytes(options.text, options.held_out)
    set_seed(arguments.seed)
    filter_lr = 0.6 * arguments.learning_rate if options.filter_lr is None else options.filter_lr
    return M2Trainer(
        model=make_model(options),
        args=arguments,
        train_dataset=Windows(train, options.length, arguments.seed),
        eval_dataset=Windows(held_out, options.length, 0, max(1, options.evaluated // options.length)),
        callbacks=[LossCurve(label="bits per byte", scale=1 / math.log(2)), *callbacks],
        filter_lr=filter_lr,
        filter_weight_decay=options.filter_weight_decay,
    )


def check_prompt(options: Options) -> None:
    """Raises ProblemError for a prompt that a sample cannot begin with."""
    count = len(options.prompt.encode())
    if options.sampled and not 1 <= count < options.length:
        found = f"it has {count} bytes, a window {options.length}"
        raise ProblemError("--prompt", found, "give one byte or more and leave room, or use --sampled 0")


def sample(model: PreTrainedModel, prompt: str, count: int, length: int) -> str:
    """`count` bytes after `prompt`, or as many as the context has room for."""
    ids = torch.tensor([list(prompt.encode())], device=model.device)
    count = min(count, length - ids.shape[1])
    out = model.eval().generate(ids, max_new_tokens=count, do_sample=True, temperature=0.7, top_k=40, pad_token_id=0)
    return bytes(out[0].tolist()).decode(errors="replace")


def main(command: list[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> M2Trainer:
    """Train and evaluate as the command line says; returns the trainer, with its log. `callbacks` are added."""
    parser = HfArgumentParser((Options, TrainingArguments), description=__doc__.splitlines()[0])
    parser.set_defaults(**DEFAULTS)
    options, arguments = parser.parse_args_into_dataclasses(command)
    begin = starting_point(arguments, options.resume)
    trainer = make_trainer(options, arguments, callbacks)
    if trainer.is_world_process_zero():
        sizes = f"{len(trainer.train_dataset)} windows of {options.length} bytes, {len(trainer.eval_dataset)} held out"
        print(f"{options.model}: {trainer.model.num_parameters():,} parameters; {sizes}", flush=True)
    trainer.train(resume_from_checkpoint=begin)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", {**metrics, "eval_bits_per_byte": metrics["eval_loss"] / math.log(2)})
    trainer.save_model()
    if options.sampled and trainer.is_world_process_zero():
        print(sample(trainer.model, options.prompt, options.sampled, options.length))
    return trainer


if __name__ == "__main__":
    try:
        main()
    except M2GenError as error:  # it says what to do
        raise SystemExit(f"Error: {error}") from None
