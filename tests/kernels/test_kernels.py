"""Specs and the text they are rendered to."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from jinja2 import meta

from m2gen.codegen.environment import environment
from m2gen.codegen.loader import templates_dir
from m2gen.codegen.render import fields, render
from m2gen.device.limits import LIMITS
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.survey import FAMILIES, KNOBS, blocks, found, variants
from m2gen.runtime.build.cross_compile import TARGETS

TEMPLATES = [
    *sorted((templates_dir() / "triton" / "fftconv").glob("*.jinja")),
    *(templates_dir() / "triton" / "_lib" / f"{piece}.jinja" for piece in ("order2", "staged", "operands", "times")),
]
SPEC = FftConvSpec(part="fwd", ring="causal", n1=16, n2=16, dtype="fp16", compute="fp16")
SPECS = [
    replace(SPEC, part=part, ring=ring, n0=n0, pre_gate=gated, post_gate=gated, transpose=transpose, wrap=wrap, n1=n1)
    for part, ring, n0, gated, transpose, wrap, n1 in product(
        ("fwd", "dk"), ("cyclic", "causal"), (1, 32), (False, True), (False, True), (False, True), (16, 32)
    )
    if not (part == "dk" and transpose) and not (ring == "causal" and wrap)
]
SPECS += [replace(spec, skip=spec.part == "dk", add=spec.part == "fwd") for spec in SPECS]
SPECS += [
    replace(
        SPEC, part="bwd", ring=ring, n1=n1, dtype=dtype, results=results, wrap=wrap, skip="dk" in results,
        pre_gate="dpre" in results, post_gate=post,
    )
    for ring, n1, dtype, wrap, post, results in product(
        ("cyclic", "causal"), (16, 64), ("fp16", "bf16"), (False, True), (False, True),
        (("du", "dk"), ("du", "dpre"), ("du", "dpre", "dk"), ("dpost", "dk"), ("du", "conv", "dk")),
    )
    if not (ring == "causal" and wrap) and not (wrap and "du" in results and "conv" in results)
]  # fmt: skip
SPECS += [replace(spec, full=True) for spec in SPECS if not spec.wrap]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_sees_the_spec_and_nothing_else(path: Path) -> None:
    names = meta.find_undeclared_variables(environment("triton").parse(path.read_text()))
    assert names <= fields(SPEC).keys() | {"tl_dtype"}


def test_a_name_spells_every_field() -> None:
    """Two specs that differ have names that differ: the name is the kernel's key for a profiler."""
    assert len({spec.name for spec in SPECS}) == len(SPECS)


def test_a_full_kernel_masks_nothing() -> None:
    for spec in SPECS:
        assert ("mask=" in render(spec).text) == (not spec.full), spec


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_rendered_kernel_is_python_that_imports_triton_only(spec: FftConvSpec) -> None:
    tree = ast.parse(render(spec).text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.name for node in imports for name in node.names}
    assert names == {"triton", "triton.language"}
    assert any(isinstance(node, ast.FunctionDef) and node.name == spec.name for node in tree.body)


def test_rendered_kernels_load_without_m2gen(tmp_path: Path) -> None:
    for spec in SPECS[::8]:
        (tmp_path / f"{spec.name}.py").write_text(render(spec).text)
    names = [spec.name for spec in SPECS[::8]]
    code = (
        f"import sys, importlib; sys.modules['m2gen'] = None; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"for name in {names!r}: getattr(importlib.import_module(name), name).arg_names"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_every_gpu_of_the_table_of_limits_has_a_target() -> None:
    gpus = {arch for arch, limits in LIMITS.items() if limits.kind == "gpu"}
    assert gpus == TARGETS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
def test_large_forward_kernels_need_what_the_formula_says(arch: str) -> None:
    """Two tiles of data; a second stage adds the input's buffers, and the spectrum's where it is read for each tile."""
    for n1, n2 in ((64, 32), (64, 64), (128, 64), (64, 128)):
        for ring, (warps, stages) in product(("cyclic", "causal"), KNOBS):
            spec = replace(SPEC, ring=ring, n1=n1, n2=n2, num_warps=warps, num_stages=stages)
            entry = found(spec, arch)
            buffers = 2 * spec.rows + (2 if spec.size >= 4096 else 0)
            assert entry is None or 0 <= entry.tiles - (2 + (stages - 1) * buffers) <= (1 / 8 if arch == "sm100" else 0)


@pytest.mark.parametrize("arch", FAMILIES)
def test_variants_fit_and_are_in_the_table(arch: str) -> None:
    limits, most = LIMITS[arch], 0
    for n0, n1, n2 in ((1, 16, 16), (1, 64, 64), (1, 128, 64), (32, 32, 32)):
        for one in variants(replace(SPEC, ring="cyclic", n0=n0, n1=n1, n2=n2), limits):
            entry, needs = found(one, arch), one.resources(arch)
            assert entry is not None and needs.shared_bytes <= limits.shared_bytes
            assert blocks(one, limits) * needs.shared_bytes <= limits.shared_bytes + 1024
            assert blocks(one, limits) * needs.threads * entry.registers <= limits.registers
            most = max(most, blocks(one, limits))
    assert most >= 4  # small kernels share a multiprocessor


def test_what_gives_no_kernel_is_known() -> None:
    fp32 = replace(SPEC, dtype="fp32", compute="fp32")
    assert list(variants(fp32, LIMITS["sm90"])) and not list(variants(fp32, LIMITS["gfx942"]))
    large = replace(SPEC, ring="cyclic", n1=128, n2=64)
    assert list(variants(large, LIMITS["sm90"])) and not list(variants(large, LIMITS["sm86"]))  # 192 KiB of 99
