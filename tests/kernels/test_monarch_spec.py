"""The specs of Monarch kernels, the text they are rendered to, and what is decided about running them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from jinja2 import meta

from m2gen.codegen.environment import environment
from m2gen.codegen.loader import templates_dir
from m2gen.codegen.render import fields, render
from m2gen.kernels.monarch_cpp import TILES, MonarchCppSpec
from m2gen.planner.monarch.run import backward_run, fits, forward_run, spec_of

FOLDER = templates_dir() / "cpp"
TEMPLATES = [*sorted((FOLDER / "monarch").glob("*.jinja")), FOLDER / "_lib" / "plain.jinja"]
SPECS = [
    MonarchCppSpec(part=part, dtype=dtype, vector_bytes=bytes_, registers=registers)
    for part, dtype, (bytes_, registers) in product(
        ("fwd", "bwd", "sum"), ("fp32", "fp64"), ((64, 32), (32, 16), (16, 32), (16, 16))
    )
]
SHAPES = (
    ((16, 16, 16),) * 2,
    ((64, 64, 64),) * 2,
    ((256, 16, 16),) * 3,
    ((4, 192, 192),) * 2,
    ((1, 5, 7),),
    ((4, 8192, 8192),) * 2,
)
ROWS = (1, 7, 64, 127, 128, 1000, 8192)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_sees_the_spec_and_nothing_else(path: Path) -> None:
    names = meta.find_undeclared_variables(environment("cpp").parse(path.read_text()))
    assert names <= fields(SPECS[0]).keys()
    assert len(path.read_text().splitlines()) <= 150


def test_a_name_spells_every_field() -> None:
    assert len({spec.name for spec in SPECS}) == len(SPECS)


def test_tiles_fit_the_registers() -> None:
    """Sums, a row of vectors, a weight; and every tile is done by a wider or a narrower one."""
    for registers, tiles in TILES.items():
        assert all(vectors * outputs + vectors + 1 <= registers for vectors, outputs in tiles)
        assert [vectors for vectors, _ in tiles] == list(range(tiles[0][0], 0, -1))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_rendered_source_exports_the_kernel_and_its_scratch(spec: MonarchCppSpec) -> None:
    text = render(spec).text
    assert f'extern "C" void {spec.name}(void *const *ptrs, const int64_t *ints,' in text
    assert f'extern "C" int64_t {spec.name}_scratch(const int64_t *' in text
    assert "//%" not in text and "{{" not in text


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_every_row_is_in_one_part(shapes: tuple[tuple[int, int, int], ...]) -> None:
    for rows, bytes_, dtype, summed in product(ROWS, (8, 32, 64), ("fp32", "fp64"), (False, True)):
        spec = spec_of("bwd", dtype, bytes_, "native")
        for run in (forward_run(rows, shapes, spec), backward_run(rows, shapes, spec, summed)):
            assert run.lanes % spec.vector == 0 and run.part % run.lanes == 0
            assert (run.parts - 1) * run.part < rows <= run.parts * run.part


def test_sums_of_all_parts_stay_in_bounds() -> None:
    for rows, shapes in product(ROWS, SHAPES):
        spec = spec_of("bwd", "fp32", 32, "avx2")
        run = backward_run(rows, shapes, spec, True)
        size = 4 * sum(nblocks * n * k for nblocks, n, k in shapes)
        assert run.parts == 1 or run.parts * size <= 2**26
        assert run.parts == 1 or run.part >= 128


def test_large_blocks_and_long_vectors_are_left_to_others() -> None:
    assert all(fits(shapes) for shapes in SHAPES[:-1]) and not fits(SHAPES[-1])
    assert fits(((512, 512, 512),) * 2) and not fits(((1, 513, 1), (513, 1, 1)))
    assert not fits(((2**20, 2, 2),))
