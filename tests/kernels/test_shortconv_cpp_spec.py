"""The specs of the short convolution and the text they are rendered to."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from jinja2 import meta

from m2gen.codegen.environment import environment
from m2gen.codegen.loader import templates_dir
from m2gen.codegen.render import fields, render
from m2gen.kernels.shortconv_cpp import ShortconvCppSpec

TEMPLATES = sorted((templates_dir() / "cpp" / "shortconv").glob("*.jinja"))
SPECS = [
    ShortconvCppSpec(part=part, layout=layout, width=width, dtype=dtype, vector_bytes=vector_bytes)
    for part, layout, width, dtype, vector_bytes in product(
        ("fwd", "dw"), ("BHL", "BLH"), (1, 3, 8, 9, 64), ("fp16", "bf16", "fp32", "fp64"), (32, 64)
    )
]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_sees_the_spec_and_nothing_else(path: Path) -> None:
    names = meta.find_undeclared_variables(environment("cpp").parse(path.read_text()))
    assert names <= fields(SPECS[0]).keys()
    assert len(path.read_text().splitlines()) <= 150


def test_a_name_spells_every_field() -> None:
    assert len({spec.name for spec in SPECS}) == len(SPECS)


def test_taps_are_in_groups_that_fit_the_registers() -> None:
    for spec in SPECS:
        assert [tap for group in spec.tap_groups for tap in group] == list(range(spec.width))


@pytest.mark.parametrize("spec", SPECS[::7], ids=lambda spec: spec.name)
def test_a_rendered_source_exports_the_kernel_and_its_scratch(spec: ShortconvCppSpec) -> None:
    text = render(spec).text
    assert f'extern "C" void {spec.name}(void *const *ptrs, const int64_t *ints,' in text
    assert f'extern "C" int64_t {spec.name}_scratch(const int64_t *' in text
    assert "//%" not in text and "{{" not in text.replace("{{ {0", "")
