"""The architecture, held by the syntax tree: who may import whom, and who may not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "m2gen"

BASE = {"errors", "config", "log", "dtypes", "version"}
MAY_IMPORT = {
    "errors": set(),
    "config": set(),
    "log": set(),
    "dtypes": set(),
    "version": set(),
    "device": set(),
    "kernels": {"device"},
    "planner": {"device", "kernels"},
    "codegen": {"device", "kernels"},
    "cache": set(),
    "reference": set(),
    "runtime": {"device", "kernels", "planner", "codegen", "cache", "reference", "testing"},
    "ops": {"device", "kernels", "planner", "runtime", "reference"},
    "monarch": {"ops", "reference"},
    "compat": {"ops"},
    "modules": {"ops", "monarch", "reference"},
    "models": {"modules"},
    "testing": {"device", "kernels", "planner", "codegen", "reference"},
}
IN_RUNTIME = {
    "machine_code": set(),
    "build": {"machine_code"},
    "bindings": {"build"},
    "binding": {"bindings"},
    "measure": {"binding", "bindings", "build"},
    "planning": {"measure", "build"},
    "beside": {"build", "measure"},
    "posed": {"bindings"},
    "executor": {"beside", "binding", "bindings", "measure", "build", "posed"},
}
ANYTHING = {"__init__", "__main__", "ahead", "cli", "demo", "doctor", "show", "tuning"}  # they import late
NO_TORCH = {
    *BASE,
    "device",
    "kernels",
    "planner",
    "codegen",
    "cache",
    "cli",
    "doctor",
    "show",
    "tuning",
    "__init__",
    "__main__",
}


def layer(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported when the file is) for every import in the file; type-only ones are left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        parents = list(ancestors(node))
        if any(isinstance(p, ast.If) and "TYPE_CHECKING" in ast.dump(p.test) for p in parents):
            continue
        late = any(isinstance(p, ast.FunctionDef | ast.AsyncFunctionDef) for p in parents)
        yield from ((name, not late) for name in names)


def ancestors(node: ast.AST) -> Iterator[ast.AST]:
    while (node := getattr(node, "parent", None)) is not None:  # type: ignore[assignment]
        yield node


FILES = sorted(PACKAGE.rglob("*.py"))
ALL = [*FILES, *sorted((ROOT / "bench").rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers_are_one_way(path: Path) -> None:
    own = layer(path)
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "m2gen" or len(parts) < 2 or own in ANYTHING:
            continue
        allowed = MAY_IMPORT[own] | BASE | {own, "__version__"}
        assert parts[1] in allowed, f"{own} imports {name}; it may import {sorted(allowed)}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if layer(path) == "runtime"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_runtime_is_one_way_inside(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[1].removesuffix(".py")
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[:2] == ["m2gen", "runtime"] and own != "__init__":
            assert parts[2] in IN_RUNTIME[own] | {own}, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_torch_where_none_belongs(path: Path) -> None:
    if layer(path) not in NO_TORCH:
        return
    for name, at_import in imports(path):
        heavy = name.split(".")[0] in {"torch", "triton"}
        late_is_fine = layer(path) in ANYTHING and not at_import
        assert not heavy or late_is_fine, f"{path.name} imports {name}"


def test_no_imports_go_in_a_circle() -> None:
    """Late imports count: a module of a circle cannot be understood without all of it."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in ALL}
    below = {name: {found for to, _ in imports(path) if (found := _file(to, files))} for name, path in files.items()}
    left = {name: found - {name} for name, found in below.items()}
    while leaves := [name for name, found in left.items() if not found & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, "these import one another, or what does"


def _file(name: str, files: dict[str, Path]) -> str | None:
    """The module that an import of `name` loads: itself, or what it is in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def test_only_config_reads_the_environment() -> None:
    for path in FILES:
        if path.name != "config.py":
            assert "os.environ" not in path.read_text() and "getenv" not in path.read_text(), path


def test_every_layer_is_in_the_table() -> None:
    assert {layer(path) for path in FILES} <= MAY_IMPORT.keys() | ANYTHING


def test_import_is_light() -> None:
    """`import m2gen` loads neither torch nor triton, nor anything else that is slow."""
    code = "import sys, m2gen; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "triton", "sympy", "numpy", "jinja2", "rich", "click"} & set(loaded)


def test_every_public_name_is_there() -> None:
    import m2gen

    for name in m2gen.__all__:
        assert getattr(m2gen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        m2gen.nothing  # noqa: B018
