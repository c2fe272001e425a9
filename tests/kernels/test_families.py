"""Specs, texts and choices of the families beside the long convolution, and what their kernels move."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import families
import pytest
from jinja2 import meta

from m2gen.codegen.environment import environment
from m2gen.codegen.loader import templates_dir
from m2gen.codegen.render import fields, render
from m2gen.device.limits import LIMITS, target
from m2gen.kernels.add_parts import AddPartsSpec
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.filter_pass import FilterPassSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.monarch import MonarchSpec
from m2gen.kernels.outer import OuterSpec
from m2gen.kernels.rows import RowsSpec
from m2gen.kernels.shortconv import ShortconvSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.kernels.spectrum import SpectrumSpec
from m2gen.kernels.turn import TurnSpec
from m2gen.planner.blockdiag import tiles as blockdiag
from m2gen.planner.blockdiag.tiles import BlockdiagSizes
from m2gen.planner.shortconv import tiles as shortconv
from m2gen.planner.shortconv.tiles import ShortconvSizes
from m2gen.planner.turn import tiles as turn
from m2gen.planner.turn.tiles import TurnSizes
from m2gen.runtime.build.triton_kernel import load

GPUS = [limits for limits in LIMITS.values() if limits.kind == "gpu"]
BLOCKDIAG = BlockdiagSpec(part="fwd", dtype="bf16", block_r=64, block_n=64, block_k=32)
SHORTCONV = ShortconvSpec(part="fwd", width=3, dtype="fp16")
OUTER = OuterSpec(part="analysis", ring="cyclic", n0=32, columns=64, dtype="fp16", compute="fp16")
ROWS = RowsSpec(part="fwd", ring="cyclic", n1=16, n2=16, dtype="fp16", compute="fp16", full=True)
MONARCH = MonarchSpec(dtype="bf16", blocks=32, depth=32, middle=32, width=32)
SPECTRUM = SpectrumSpec(part="fwd", n1=32, n2=16, order=(32, 16), compute="fp16")
FILTER_PASS = FilterPassSpec(part="fwd", ring="cyclic", n0=16, n1=16, n2=256, columns=64)
SPECS: list[TritonSpec] = [
    MONARCH,
    *(
        replace(SPECTRUM, **{name: value})
        for name, value in {
            "part": "inverse", "ring": "causal", "n0": 32, "n1": 64, "n2": 64, "order": (32, 64, 16), "compute": "bf16",
            "stack": 4, "two_sided": True, "skip": True, "precision": "ieee", "emulated": True, "num_warps": 2,
        }.items()
    ),
    *(
        replace(SPECTRUM, part=part, n0=32, ring=ring, two_sided=two_sided, skip=skip)
        for part, ring, two_sided, skip in product(
            ("fwd_outer", "fwd_inner", "inverse_inner", "inverse_outer"),
            ("cyclic", "causal"), (False, True), (False, True),
        )
    ),
    *(
        replace(MONARCH, **{name: value})
        for name, value in {
            "dtype": "fp32", "blocks": 12, "depth": 5, "middle": 10, "width": 15, "block_r": 32, "precision": "ieee",
            "num_warps": 8, "emulated": True,
        }.items()
    ),
    replace(SPECTRUM, part="fwd_inner", rows=16, bounds=(16, 4)),
    replace(SPECTRUM, part="fwd_inner", rows=16, bounds=(4, 16)),
    *(
        replace(FILTER_PASS, **{name: value})
        for name, value in {
            "part": "inverse", "ring": "causal", "n0": 32, "n1": 1, "n2": 4096, "columns": 128, "nested": True,
            "last": True, "two_sided": True, "skip": True, "precision": "ieee", "num_warps": 4,
        }.items()
    ),
    *(replace(FILTER_PASS, part="inverse", **{name: True}) for name in ("nested", "two_sided", "emulated")),
    TurnSpec(dtype="fp16"),
    TurnSpec(dtype="fp32", block_r=32, block_c=128, num_warps=8),
    TurnSpec(dtype="bf16", inner="fp16", pre=True),
    TurnSpec(dtype="bf16", inner="bf16", pre=True, emulated=True),
    *(TurnSpec(dtype="bf16", inner="fp32", post=post, add=not post or rest) for post, rest in ((0, 1), (1, 0), (1, 1))),
    OUTER,
    *(
        replace(OUTER, **{name: value})
        for name, value in {
            "ring": "causal", "n0": 64, "columns": 32, "dtype": "bf16", "compute": "bf16", "gate": True, "wrap": True,
            "ranged": True, "nested": True, "emulated": True, "num_warps": 8, "num_stages": 1,
        }.items()
    ),
    replace(OUTER, wrap=True, transpose=True),
    replace(OUTER, pair=True),
    replace(OUTER, pair=True, pair_gate=True),
    replace(OUTER, pair=True, skip=True),
    *(
        replace(OUTER, part="synthesis", gate=gate, second=second, add=add, nested=not (gate or add))
        for gate, second, add in ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1))
    ),
    *(LargestSpec(dtype=dtype, rows=rows, gate=gate) for dtype, rows, gate in (("bf16", 1, True), ("fp32", 2, False))),
    AddPartsSpec(dtype="bf16"),
    AddPartsSpec(dtype="bf16", block=256, num_warps=2, emulated=True),
    *(
        replace(BLOCKDIAG, part=part, blocks=blocks, bias=rest, glu=rest, residual=rest, activation=activation)
        for part, blocks, rest, activation in product(
            ("fwd", "dz", "dw"), (1, 4), (False, True), (None, "gelu", "relu", "silu")
        )
    ),
    *(
        replace(BLOCKDIAG, **{name: value})
        for name, value in {
            "dtype": "fp32", "block_r": 128, "block_n": 32, "block_k": 64, "group": 1, "bias": True, "glu": True,
            "residual": True, "precision": "tf32x3", "num_warps": 8, "num_stages": 2, "emulated": True,
        }.items()
    ),
    *(
        replace(SHORTCONV, part=part, width=width, masked=masked, bias=bias, taps=min(width, 4))
        for part, width, masked, bias in product(
            ("fwd", "dw", "mix", "mix_bwd", "ds"), (3, 4), ("no", "in", "out"), (False, True)
        )
    ),
    *(
        replace(SHORTCONV, **{name: value})
        for name, value in {
            "dtype": "bf16", "block_l": 32, "block_h": 32, "taps": 2, "last": (True, False), "num_warps": 8,
            "emulated": True,
        }.items()
    ),
]  # fmt: skip
PIECES = {
    "spectrum/[!p]*": SPECTRUM,
    "spectrum/pass*": FILTER_PASS,
    "_lib/factored": FILTER_PASS,
    "turn": TurnSpec(dtype="fp16"),
    "add_parts": AddPartsSpec(dtype="bf16"),
    "outer/analysis.py": OUTER,
    "outer/synthesis.py": OUTER,
    "outer/rows.py": ROWS,
    "outer/rows_dk.py": replace(ROWS, part="dk"),
    "_lib/outer": OUTER,
    "_lib/operands": OUTER,
    "_lib/times": OUTER,
    "monarch": MONARCH,
    "blockdiag": BLOCKDIAG,
    "shortconv": SHORTCONV,
    "_lib/activation": BLOCKDIAG,
    "_lib/products": BLOCKDIAG,
    "_lib/result": BLOCKDIAG,
}
TEMPLATES = [
    (path, spec)
    for place, spec in PIECES.items()
    for path in sorted((templates_dir() / "triton").glob(f"{place}.jinja" if "/" in place else f"{place}/*.jinja"))
]


@pytest.mark.parametrize("path, spec", TEMPLATES, ids=lambda value: getattr(value, "stem", ""))
def test_a_template_is_short_and_sees_the_spec_and_nothing_else(path: Path, spec: TritonSpec) -> None:
    text = path.read_text()
    assert meta.find_undeclared_variables(environment("triton").parse(text)) <= fields(spec).keys() | {"tl_dtype"}
    assert len(text.splitlines()) <= 150


def test_a_name_spells_every_field() -> None:
    assert len({spec.name for spec in SPECS}) == len(set(SPECS))


@pytest.mark.parametrize("spec", SPECS[::3], ids=lambda spec: spec.name)
def test_a_rendered_kernel_is_python_that_imports_triton_only(spec: TritonSpec) -> None:
    tree = ast.parse(render(spec).text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {name.name for node in imports for name in node.names} == {"triton", "triton.language"}
    kernel = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == spec.name)
    assert {name for name in spec.launched() if name.endswith("_ptr")} <= {one.arg for one in kernel.args.args}


def test_rendered_kernels_load_without_m2gen(tmp_path: Path) -> None:
    some = SPECS[::9]
    for spec in some:
        (tmp_path / f"{spec.name}.py").write_text(render(spec).text)
    code = (
        f"import sys, importlib; sys.modules['m2gen'] = None; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"for name in {[spec.name for spec in some]!r}: getattr(importlib.import_module(name), name).arg_names"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# -- choices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", GPUS, ids=lambda limits: limits.arch)
def test_there_is_a_kernel_that_fits_for_any_size(limits: Any) -> None:
    found: list[Any] = []
    for size, dtype in product((1, 5, 16, 100, 4096), ("fp16", "bf16", "fp32")):
        found += [turn.candidates(TurnSizes(2, size, 7, dtype), limits)]
        for part in ("fwd", "dz", "dw"):
            sizes = BlockdiagSizes(size, 4, size, 33, dtype, glu=True, apart_x=size < 100)
            found.append(blockdiag.candidates(sizes, limits, part))  # type: ignore[arg-type]
        for width, part in product((1, 3, 64), ("fwd", "dw", "mix", "ds")):
            found.append(shortconv.candidates(ShortconvSizes(2, size, 50, width, dtype), limits, part))  # type: ignore[arg-type]
        for width in (1, 3, 4):
            found.append(shortconv.candidates(ShortconvSizes(2, size, 50, width, dtype), limits, "mix_bwd"))
    for ranked in found:
        assert ranked and [one.seconds for one in ranked] == sorted(one.seconds for one in ranked)
        for one in ranked:
            assert one.spec.resources(limits.arch).shared_bytes <= limits.shared_bytes and one.bytes > 0
            assert one.parts >= 1


def test_products_are_pipelined_in_two_stages_or_more() -> None:
    """With one stage, constant descriptors of shared memory were lost on Hopper (m2gen/kernels/unsound.py)."""
    for sizes, part in product((families.GLU, families.OUT, families.STAGE), ("fwd", "dz", "dw")):
        for one in blockdiag.candidates(sizes, target("sm90"), part):  # type: ignore[arg-type]
            assert one.spec.num_stages >= 2


def test_float32_products_are_float32s() -> None:
    for limits in GPUS:
        spec = blockdiag.candidates(replace(families.GLU, dtype="fp32"), limits)[0].spec
        assert spec.precision == ("ieee" if limits.arch == "gfx942" else "tf32x3")


# -- traffic -----------------------------------------------------------------------------------------------------------


class Cache:
    """An L2 cache that forgets what was not used for longest: bytes that come through it from memory."""

    def __init__(self, size: int) -> None:
        self.size, self.held, self.missed = size, 0, 0
        self._kept: OrderedDict[object, int] = OrderedDict()

    def read(self, key: object, size: int) -> None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        self._kept[key] = size
        self.missed, self.held = self.missed + size, self.held + size
        while self.held > self.size:
            self.held -= self._kept.popitem(last=False)[1]


def place_of(spec: TritonSpec) -> Callable[..., tuple[int, ...]]:
    """The kernel's own order of programs, as a function of Python's integers."""
    found: Callable[..., tuple[int, ...]] = load(spec).fn.__globals__["place"].fn
    return found


def pieces(first: int, size: int, end: int) -> int:
    """Of a tile that may stand over the end, what is inside."""
    return min(size, end - first * size)


def moved(reads: Iterable[tuple[object, int, int]], cache: Cache) -> int:
    """Bytes of all (key, bytes read, bytes written) beside: what misses the cache, and every write."""
    written = 0
    for key, read, wrote in reads:
        if read:
            cache.read(key, read)
        written += wrote
    return cache.missed + written


@pytest.mark.parametrize("residual", [False, True])
def test_a_gated_product_moves_what_it_must(residual: bool) -> None:
    """Programs in their order; x and the weight come from memory where they are not in half of the H100's L2, which is
    two halves. Every program reads its tile of x and of the weight for both blocks, whole along the sum."""
    sizes, limits = replace(families.GLU, residual=residual), target("sm90")
    choice = blockdiag.candidates(sizes, limits)[0]
    spec, place = choice.spec, place_of(choice.spec)
    tiles = [-(-n // size) for n, size in ((sizes.rows, spec.block_r), (sizes.width, spec.block_n))]

    def reads() -> Iterator[tuple[object, int, int]]:
        for pid in range(tiles[0] * tiles[1] * sizes.results):
            r, n, block = place(pid, *tiles, sizes.results)
            high, wide = pieces(r, spec.block_r, sizes.rows), pieces(n, spec.block_n, sizes.width)
            for one in (block, block + sizes.results):
                yield ("x", r, one), 2 * high * sizes.depth, 0
                yield ("w", n, one), 2 * wide * sizes.depth, 0
            yield ("s", r, n, block), 2 * high * wide * spec.residual, 2 * high * wide

    least = 2 * (sizes.rows * (768 + 3072 * (1 + residual)) + sizes.blocks * sizes.depth * sizes.width)
    total = moved(reads(), Cache(limits.bandwidths[0][0] // 2))
    assert least <= total <= 1.1 * least
    assert least == choice.bytes


@pytest.mark.parametrize("last_out", [False, True])
@pytest.mark.parametrize("given", [families.ACROSS, families.MIXER], ids=["channels last", "times last"])
def test_the_mixer_s_form_moves_what_it_must(given: ShortconvSizes, last_out: bool) -> None:
    """Each program reads the times of its tile and width - 1 before it, which the tile before reads as well, and its
    filters; taps after the first find what they need in the multiprocessor's own cache."""
    sizes, limits = replace(given, masked="no", last_out=last_out), target("sm90")
    choice = shortconv.candidates(sizes, limits, "mix")[0]
    spec, place = choice.spec, place_of(choice.spec)
    tiles = [-(-n // size) for n, size in ((sizes.length, spec.block_l), (sizes.channels, spec.block_h))]

    def reads() -> Iterator[tuple[object, int, int]]:
        for pid in range(sizes.batch * tiles[0] * tiles[1]):
            b, time, channel = place(pid, *tiles)
            high, wide = pieces(time, spec.block_l, sizes.length), pieces(channel, spec.block_h, sizes.channels)
            late = min(high, sizes.width - 1)
            for stream in range(3):
                yield ("late", b, time - 1, channel, stream), 2 * wide * (sizes.width - 1) * (time > 0), 0
                yield ("early", b, time, channel, stream), 2 * wide * (high - late), 0
                yield ("late", b, time, channel, stream), 2 * wide * late, 0
                yield ("w", channel, stream), 2 * wide * (sizes.width + 1 + sizes.offset), 0
            yield None, 0, 2 * 2 * high * wide

    least = 2 * sizes.batch * sizes.length * 5 * sizes.channels
    assert least <= moved(reads(), Cache(limits.bandwidths[0][0] // 2)) <= 1.1 * least
    assert (spec.block_h if sizes.last_in else spec.block_l) * 2 % 32 == 0  # whole sectors of memory
    assert least == choice.bytes
