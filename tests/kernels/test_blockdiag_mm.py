"""The specs of products with block-diagonal weights and the text they are rendered to."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from jinja2 import meta

from m2gen.codegen.environment import environment
from m2gen.codegen.loader import templates_dir
from m2gen.codegen.render import fields, render
from m2gen.kernels.activation import ACTIVATIONS
from m2gen.kernels.blockdiag_mm import TILE_ROWS, BlockdiagMmSpec
from m2gen.planner.blockdiag.native_products import columns_for

TEMPLATES = sorted((templates_dir() / "cpp" / "blockdiag_mm").glob("*.jinja"))
SPECS = [
    BlockdiagMmSpec(
        part=part,
        columns=columns,
        dtype=dtype,
        glu=glu,
        activation=activation,
        vector_bytes=bytes_,
        registers=registers,
    )
    for part, columns, dtype, (glu, activation), (bytes_, registers) in product(
        ("fwd", "pack", "outer"),
        (1, 2, 3, 4),
        ("fp32", "fp64"),
        [(False, None), *product((True,), (None, *ACTIVATIONS))],
        ((64, 32), (32, 16), (16, 32)),
    )
    if columns in TILE_ROWS[registers]
]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_sees_the_spec_and_nothing_else(path: Path) -> None:
    names = meta.find_undeclared_variables(environment("cpp").parse(path.read_text()))
    assert names <= fields(SPECS[0]).keys()
    assert len(path.read_text().splitlines()) <= 150


def test_a_name_spells_every_field() -> None:
    assert len({spec.name for spec in SPECS}) == len(SPECS)


def test_tiles_fit_the_registers() -> None:
    for spec in SPECS:
        assert spec.rows * spec.columns + spec.columns + 1 <= spec.registers
        # any number of rows that are left is a sum of tails
        assert sum(spec.tails) >= spec.rows - 1


@pytest.mark.parametrize("registers", TILE_ROWS)
def test_columns_leave_least_over(registers: int) -> None:
    assert columns_for(2304, 16, registers) == columns_for(192, 16, registers) == {32: 3, 16: 2}[registers]
    assert columns_for(16, 16, registers) == 1
    for outputs in range(1, 300):
        width = 16 * columns_for(outputs, 16, registers)
        assert -(-outputs // width) * width < outputs + {32: 16, 16: 32}[registers]


def test_the_transpose_moves_every_number_to_its_place() -> None:
    for spec in SPECS:
        x = [[(i, j) for j in range(spec.vector)] for i in range(spec.vector)]
        for level in spec.levels:
            x = [[(x[a] + x[b])[int(k)] for k in lanes.split(",")] for a, b, lanes in level]
        assert all(x[i][j] == (j, i) for i in range(spec.vector) for j in range(spec.vector))


def test_the_polynomial_of_the_complementary_error_function() -> None:
    z = np.linspace(0, 9.5, 5001)
    t = 1 / (1 + z / 2)
    found = np.polynomial.polynomial.polyval(t, SPECS[0].erfcx)
    exact = np.array([math.exp(at * at) * math.erfc(at) for at in z])
    assert np.abs(found / exact - 1).max() < 4e-8


@pytest.mark.parametrize("spec", SPECS[::11], ids=lambda spec: spec.name)
def test_a_rendered_source_exports_the_kernel_and_its_scratch(spec: BlockdiagMmSpec) -> None:
    text = render(spec).text
    assert f'extern "C" void {spec.name}(void *const *ptrs, const int64_t *ints,' in text
    assert f'extern "C" int64_t {spec.name}_scratch(const int64_t *' in text
    assert "//%" not in text and "{{" not in text
