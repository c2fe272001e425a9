"""The specs of the convolution in C++, the text they are rendered to, and the numbers they promise."""

from __future__ import annotations

from itertools import product
from math import prod
from pathlib import Path

import pytest
from jinja2 import meta

from m2gen.codegen.environment import environment
from m2gen.codegen.loader import templates_dir
from m2gen.codegen.render import fields, render
from m2gen.kernels.fftconv_cpp import FftConvCppSpec
from m2gen.planner.fftconv.native import radices_of, smooth

OTHERS = ("plain", "square", "lanes", "activation")  # pieces of other families
TEMPLATES = [
    *sorted(path for path in (templates_dir() / "cpp" / "_lib").glob("*.jinja") if path.stem not in OTHERS),
    *sorted((templates_dir() / "cpp" / "fftconv").glob("*.jinja")),
]
SPECS = [
    FftConvCppSpec(
        part=part, radices=radices, vector=vector, dtype=dtype, compute=compute, half=half, half_filter=half_filter
    )
    for part, radices, (vector, dtype, compute), half, half_filter in product(
        ("fwd", "bwd"),
        ((1,), (4,), (8, 4, 4), (4, 8, 4), (2, 3, 5, 7)),
        ((16, "fp32", "fp32"), (16, "bf16", "fp32"), (8, "fp16", "fp32"), (8, "fp64", "fp64"), (2, "fp64", "fp64")),
        (False, True),
        (False, True),
    )
]

LANES = [
    FftConvCppSpec(
        part=part, radices=radices, vector=vector, dtype=dtype, compute=compute, half=half, half_filter=half, wide=wide
    )
    for part, radices, (vector, dtype, compute), half, wide in product(
        ("fwd", "bwd", "spectrum"),
        ((1,), (4, 8), (2, 3, 5, 7)),
        ((16, "fp32", "fp32"), (8, "fp16", "fp32"), (2, "fp64", "fp64")),
        (False, True),
        (1, 2),
    )
]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_sees_the_spec_and_nothing_else(path: Path) -> None:
    names = meta.find_undeclared_variables(environment("cpp").parse(path.read_text()))
    assert names <= fields(SPECS[0]).keys()
    assert len(path.read_text().splitlines()) <= 150


def test_a_name_spells_every_field() -> None:
    assert len({spec.name for spec in (*SPECS, *LANES)}) == len(SPECS) + len(LANES)
    assert all(spec.name.isidentifier() for spec in (*SPECS, *LANES))


@pytest.mark.parametrize("spec", [*SPECS[::9], *LANES[::5]], ids=lambda spec: spec.name)
def test_a_rendered_source_exports_the_kernel_and_its_scratch(spec: FftConvCppSpec) -> None:
    text = render(spec).text
    assert f'extern "C" void {spec.name}(void *const *ptrs, const int64_t *ints,' in text
    assert f'extern "C" int64_t {spec.name}_scratch(const int64_t *' in text
    assert "//%" not in text and "{{" not in text and "{%" not in text


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_passes_and_table_cover_the_ring(spec: FftConvCppSpec) -> None:
    assert spec.size == prod(spec.factors)
    offset = spec.passes[0].offset
    for at in spec.passes:
        assert at.blocks * at.points == spec.size
        assert at.offset == offset
        offset += 2 * (at.radix - 1) * at.blocks
    assert offset == spec.offsets.leaf_scalars
    assert spec.offsets.leaf_lanes % spec.vector == 0  # vectors in the table are aligned
    assert spec.offsets.end - spec.offsets.leaf_lanes == 2 * spec.vector * spec.leaves


@pytest.mark.parametrize("spec", LANES, ids=lambda spec: spec.name)
def test_a_codelet_is_one_more_pass(spec: FftConvCppSpec) -> None:
    assert spec.size == prod(spec.factors)
    assert (
        spec.offsets.end == sum(2 * (p.radix - 1) * p.blocks for p in spec.passes) + 2 * (spec.leaf - 1) * spec.leaves
    )
    assert [at.vectors for at in spec.passes] == [at.points * spec.wide for at in spec.passes]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_exchanges_are_permutations_that_undo_themselves(spec: FftConvCppSpec) -> None:
    start = [[v * spec.vector + lane for lane in range(spec.vector)] for v in range(4)]
    for levels in spec.shuffles.values():
        once = start
        for _ in range(2):
            for level in levels:
                once = [[(once[a] + once[b])[lane] for lane in lanes] for a, b, lanes in level]
        assert once == start


@pytest.mark.parametrize(("vector", "compute"), [(16, "fp32"), (8, "fp32"), (4, "fp32"), (8, "fp64"), (4, "fp64")])
def test_a_tile_is_turned(vector: int, compute: str) -> None:
    spec = FftConvCppSpec(
        part="fwd", radices=(4,), vector=vector, dtype=compute, compute=compute, half=True, half_filter=True
    )
    tile = [[(i, j) for j in range(vector)] for i in range(vector)]
    for exchange, of in spec.turns:
        four = [tile[i] for i in of]
        for level in spec.shuffles[exchange]:
            four = [[(four[a] + four[b])[lane] for lane in lanes] for a, b, lanes in level]
        for i, row in zip(of, four, strict=True):
            tile[i] = row
    assert tile == [[(j, i) for j in range(vector)] for i in range(vector)]


def test_sizes_are_close_and_radices_are_known() -> None:
    for least in range(1, 5000):
        sizes = smooth(least)
        assert least <= sizes[0] <= 1.15 * least + 1
        for size in sizes:
            assert prod(radices_of(size)) == size
            assert set(radices_of(size)) <= {1, 2, 3, 4, 5, 7, 8}
