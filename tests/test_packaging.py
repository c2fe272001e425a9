"""A wheel, an editable install and a plain checkout all find the templates and the corpus."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROBE = (
    "from m2gen.codegen.loader import templates_dir; from m2gen.testing.corpus import corpus;"
    "print(templates_dir(), (templates_dir() / 'README.md').is_file(), len(corpus()) > 30)"
)


def probe(path: Path, cwd: Path) -> list[str]:
    """What a fresh interpreter finds with `path` in front of its search path."""
    env = os.environ | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    run = subprocess.run([sys.executable, "-c", PROBE], cwd=cwd, env=env, capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_checkout(tmp_path: Path) -> None:
    assert probe(ROOT, tmp_path) == [str(ROOT / "templates"), "True", "True"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    for name in ("m2gen", "templates"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def pip(*args: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, args), "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run(command, check=True, capture_output=True)


def test_wheel(source: Path, tmp_path: Path) -> None:
    pip("wheel", source, "-w", tmp_path)
    (wheel,) = tmp_path.glob("m2gen-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = archive.namelist()
    templates = {str(p.relative_to(ROOT)) for p in (ROOT / "templates").rglob("*") if p.is_file()}
    assert {f"m2gen/{name}" for name in templates} <= set(names)
    assert not any(name.startswith(("tests/", "templates/", "bench/")) for name in names)
    assert probe(installed, tmp_path) == [str(installed / "m2gen" / "templates"), "True", "True"]


def test_editable(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip("install", "--target", target, "-e", source)
    # The target is read as site-packages (its .pth leads to the source), then the dependencies' folder as a plain one.
    packages = sysconfig.get_paths()["purelib"]
    code = f"import site, sys; site.addsitedir({str(target)!r}); sys.path.append({packages!r}); {PROBE}"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-S", "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(source / "templates"), "True", "True"]
