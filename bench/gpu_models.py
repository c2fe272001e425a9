"""Models of long sequences on a GPU: M2-BERT-80M beside transformers' BERT-base and ModernBERT-base, M2-GPT and M2-ViT,
random weights, bfloat16, 32,768 tokens a call whatever the length.

Forward: evaluation, no gradients. Training: forward, the loss, backward into all weights; no optimizer, no dropout.
The loss of a text's encoder is a masked LM's, the cross-entropy of 15 % of the positions by the embedding's weights; of
M2-GPT the same of its logits, which it makes for all positions; of images the classes'. M2-GPT-145M has no MLPs;
M2-ViT-b and ViT-b (the same code with attention) take images whose patches make up the length.

    compiled        torch.compile, mode default
    filters kept    m2gen.keep_filters: in evaluation, long filters and their spectra are kept from call to call
    CUDA graph      filters kept, torch.compile(mode="reduce-overhead")
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import m2gen
from bench.device import Clock
from bench.timing import rounded, summary
from bench.workers import Job, Row, told

if TYPE_CHECKING:
    from bench.gpu import Options

MASKED = 0.15
SAMPLE = 2  # sequences that errors are measured on


class Absent(Exception):
    """Something that a model needs is not there; it says what."""


@dataclass(frozen=True)
class Sizes:
    """Lengths, the most telling first, tokens a call, and what shrinks for a try on a CPU."""

    lengths: tuple[int, ...] = (512, 4096, 2048, 8192, 1024, 32768, 16384)
    squares: tuple[int, ...] = (1024, 4096)  # lengths of which images are made
    tokens: int = 32768
    tiny: bool = False

    def compile(self, model: nn.Module, graph: bool = False) -> nn.Module:
        """By Inductor; a try on a CPU traces and does not wait for a C++ compiler."""
        if self.tiny:
            return torch.compile(model, backend="aot_eager")  # type: ignore[return-value]
        return torch.compile(model, mode="reduce-overhead" if graph else None)  # type: ignore[return-value]


FULL, TINY = Sizes(), Sizes((32,), (16,), 64, True)


# -- models ------------------------------------------------------------------------------------------------------------


def _m2bert(length: int, layers: int | None, tiny: bool) -> nn.Module:
    from m2gen.models import M2BertConfig, M2BertModel

    small = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 99, "hyena_filter_order": 16}
    changes = {"max_position_embeddings": length, "hidden_dropout_prob": 0.0, "num_hidden_layers": layers or 12}
    config = M2BertConfig.preset("80M", **changes, **(small if tiny else {}))
    return M2BertModel(config, add_pooling_layer=False)


def _bert(attention: str) -> Callable[..., nn.Module]:
    def made(length: int, layers: int | None, tiny: bool) -> nn.Module:
        from transformers import BertConfig, BertModel

        small = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 99, "num_attention_heads": 2}
        changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": layers or 12}
        changes |= small if tiny else {}
        config = BertConfig(max_position_embeddings=length, attn_implementation=attention, **changes)
        return BertModel(config, add_pooling_layer=False)

    return made


def _modernbert(length: int, layers: int | None, tiny: bool) -> nn.Module:
    """With flash-attention 2, which takes sequences without their padding."""
    try:
        from transformers import ModernBertConfig, ModernBertModel

        config = ModernBertConfig(max_position_embeddings=length, attn_implementation="flash_attention_2")
        if layers:
            config.num_hidden_layers = layers
        return ModernBertModel(config)
    except (ImportError, ValueError) as error:
        raise Absent(" ".join(str(error).split())[:300]) from error


def _m2gpt(length: int, layers: int | None, tiny: bool) -> nn.Module:
    from m2gen.models import M2GPT, M2GPTConfig

    small = {"d_model": 32, "vocab_size": 99, "filter_options": {"heads": 2, "width": 16}}
    return M2GPT(M2GPTConfig.preset("145M", max_length=length, n_layers=layers or 22, **(small if tiny else {})))


def _vit(preset: str) -> Callable[..., nn.Module]:
    def made(length: int, layers: int | None, tiny: bool) -> nn.Module:
        from m2gen.models import M2ViTConfig, M2ViTForImageClassification

        patch = 4 if tiny else 16
        small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "hyena_filter_order": 16}
        changes = {"image_size": patch * math.isqrt(length), "patch_size": patch, "num_hidden_layers": layers or 12}
        config = M2ViTConfig.preset(preset, **changes, **(small if tiny else {}))
        return M2ViTForImageClassification(config)

    return made


KINDS: dict[str, Callable[..., nn.Module]] = {
    "M2-BERT": _m2bert,
    "BERT, SDPA": _bert("sdpa"),
    "BERT, eager": _bert("eager"),
    "ModernBERT, flash-attention 2": _modernbert,
    "M2-GPT": _m2gpt,
    "M2-ViT": _vit("M2-ViT-b"),
    "ViT": _vit("ViT-b"),
}
IMAGES = ("M2-ViT", "ViT")


def build(kind: str, length: int, sizes: Sizes, layers: int | None = None) -> nn.Module:
    """Random weights, float32, on the CPU. Raises Absent."""
    torch.manual_seed(0)
    return KINDS[kind](length, layers or (2 if sizes.tiny else None), sizes.tiny)


def inputs(kind: str, model: nn.Module, length: int, batch: int, device: str, dtype: torch.dtype) -> Tensor:
    if kind in IMAGES:
        config: Any = model.config
        return torch.randn(batch, 3, config.image_size, config.image_size, device=device, dtype=dtype)
    return torch.randint(1, _embedding(model).weight.shape[0], (batch, length), device=device)


def _embedding(model: Any) -> nn.Embedding:
    found: nn.Embedding = model.embedding if hasattr(model, "embedding") else model.get_input_embeddings()
    return found


def result(out: Any) -> Tensor:
    """The states, or the logits of a model with a head."""
    if isinstance(out, Tensor):
        return out
    found: Tensor = out.last_hidden_state if "last_hidden_state" in out else out.logits
    return found


def loss_of(kind: str, model: nn.Module, batch: int, length: int, device: str) -> Callable[[Any], Tensor]:
    """A model's output to a number."""
    if kind in IMAGES:
        classes = torch.randint(1000, (batch,), device=device)
        return lambda out: F.cross_entropy(result(out).float(), classes)
    rows = batch * length
    places = torch.randperm(rows, device=device)[: max(1, int(MASKED * rows))]
    words = torch.randint(1, _embedding(model).weight.shape[0], places.shape, device=device)

    def loss(out: Any) -> Tensor:
        picked = result(out).flatten(0, 1)[places]
        logits = picked if kind == "M2-GPT" else picked @ _embedding(model).weight.t()
        return F.cross_entropy(logits.float(), words)

    return loss


# -- rows --------------------------------------------------------------------------------------------------------------

FORWARD, TRAINING = "forward", "training"
PLAIN, COMPILED, KEPT, GRAPH = "", ", compiled", ", filters kept", ", CUDA graph"


def calls(
    kind: str, way: str, step: str, length: int, sizes: Sizes, device: str, layers: int | None = None
) -> tuple[Callable[[], Any], int]:
    """What is timed, and its number of sequences. Raises Absent."""
    dtype, batch = torch.bfloat16, max(1, sizes.tokens // length)
    model = build(kind, length, sizes, layers).to(device=device, dtype=dtype)
    model.train(step == TRAINING)
    if way in (KEPT, GRAPH):
        m2gen.keep_filters(model)
    called = model if way in (PLAIN, KEPT) else sizes.compile(model, way == GRAPH)
    x, loss = inputs(kind, model, length, batch, device, dtype), loss_of(kind, model, batch, length, device)

    def forward() -> Any:
        with torch.no_grad():
            return called(x)

    def training() -> None:
        model.zero_grad(set_to_none=True)
        loss(called(x)).backward()

    return (training if step == TRAINING else forward), batch


def measure(
    kind: str, way: str, step: str, length: int, sizes: Sizes, device: str, rounds: int, layers: int | None = None
) -> list[Row]:
    """One row; none with no rounds, which only compiles what the calls need."""
    name = f"{kind}{way}"
    try:
        call, batch = calls(kind, way, step, length, sizes, device, layers)
    except Absent as why:
        return [told("left out", f"{name} L={length} {step}", str(why))]
    clock = Clock(device)
    if not rounds:
        call()
        clock.settle()
        return []
    times = clock.times(call, rounds)
    ms, top = summary(times), clock.peak(call)
    row: Row = {"group": f"gpu models, {step}", "problem": f"{name} L={length} b={batch} bf16", "length": length}
    row |= {"batch": batch, "ms": {name: ms}, "ratio": {}, "times": rounded({name: times})}
    return [row | {"tokens_per_ms": {name: batch * length / ms["median"]}, "peak_mib": {name: top}}]


def error(length: int, sizes: Sizes, device: str, layers: int | None = None) -> list[Row]:
    """Relative l2 difference of M2-BERT's states in bfloat16 from those of the same weights in float32, and in the ways
    that are timed from each other's."""
    with torch.no_grad():
        wide = build("M2-BERT", length, sizes, layers).to(device).eval()
        model = copy.deepcopy(wide).to(torch.bfloat16)
        x = inputs("M2-BERT", model, length, min(SAMPLE, max(1, sizes.tokens // length)), device, torch.bfloat16)
        right = result(wide(x))
        found = {"M2-BERT": _relative(result(model(x)), right)}
        m2gen.keep_filters(model)
        for _ in range(2):
            kept = result(model(x))
        found["M2-BERT, filters kept"] = _relative(kept, right)
        found["M2-BERT, compiled"] = _relative(result(sizes.compile(model)(x)), right)
    return [{"group": "gpu models, error", "problem": f"L={length} bf16", "length": length, "error": found}]


def _relative(x: Tensor, right: Tensor) -> float:
    return float((x.double() - right.double()).norm() / right.double().norm())


def _wanted(sizes: Sizes) -> Iterator[tuple[str, str, str, int]]:
    """(kind, way, step, length) in order of importance."""
    ours = "M2-BERT"
    groups: list[tuple[tuple[tuple[str, str], ...], str]] = [
        (((ours, PLAIN), ("BERT, SDPA", PLAIN)), FORWARD),
        (((ours, GRAPH),), FORWARD),
        (((ours, PLAIN), ("BERT, SDPA", PLAIN)), TRAINING),
        (((ours, COMPILED), ("BERT, SDPA", COMPILED)), FORWARD),
        (((ours, KEPT), ("BERT, eager", PLAIN), ("ModernBERT, flash-attention 2", PLAIN)), FORWARD),
        (((ours, COMPILED), ("BERT, SDPA", COMPILED)), TRAINING),
        ((("M2-GPT", PLAIN), ("M2-ViT", PLAIN), ("ViT", PLAIN)), FORWARD),
        ((("BERT, eager", PLAIN), ("ModernBERT, flash-attention 2", PLAIN)), TRAINING),
        ((("M2-GPT", PLAIN), ("M2-ViT", PLAIN), ("ViT", PLAIN)), TRAINING),
        ((("M2-GPT", COMPILED), ("BERT, eager", COMPILED), ("ModernBERT, flash-attention 2", COMPILED)), FORWARD),
        ((("M2-ViT", COMPILED), ("ViT", COMPILED)), FORWARD),
    ]
    for ways, step in groups:
        for length in sorted({*sizes.lengths, *sizes.squares}, key=_place(sizes)):
            for kind, way in ways:
                if length in (sizes.squares if kind in IMAGES else sizes.lengths):
                    yield kind, way, step, length


def _place(sizes: Sizes) -> Callable[[int], int]:
    order = (*sizes.lengths, *sizes.squares)
    return order.index


def jobs(options: Options) -> tuple[list[Job], list[Job]]:
    """What is compiled first, and what is timed: M2-BERT's errors stand between its graph and its training."""
    sizes = TINY if options.tiny else FULL
    timed: list[Job] = []
    for kind, way, step, length in _wanted(sizes):
        name = f"{kind}{way} L={length} {step}"
        timed.append(Job(name, measure, (kind, way, step, length, sizes, options.device, options.rounds)))
    errors = [Job(f"M2-BERT L={n} error", error, (n, sizes, options.device)) for n in sizes.lengths]
    before = 3 * len(sizes.lengths)
    timed[before:before] = errors
    timed = [job for job in timed if options.only is None or options.only in job.name]
    return list(_compiled(timed)), timed


def _compiled(timed: list[Job]) -> Iterator[Job]:
    """What makes a row's kernels. Layers are alike, and two have all of a model's kernels of ours; Inductor's are kept
    by the graph, so that what it compiles is the whole model. Both find theirs on the disk later."""
    for job in timed:
        if job.call is error:
            yield Job(job.name, error, (*job.args, 2), 12.0)
            continue
        kind, way, step, length, sizes, device, _ = job.args
        compiled = way in (COMPILED, GRAPH)
        if compiled or kind in ("M2-BERT", "M2-GPT", "M2-ViT"):
            needed = (24.0 if step == TRAINING else 6.0) if compiled else 14.0 if kind == "M2-GPT" else 8.0
            args = (kind, way, step, length, sizes, device, 0, None if compiled else 2)
            yield Job(job.name, measure, args, needed)
