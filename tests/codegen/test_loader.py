from __future__ import annotations

import pytest

from m2gen.codegen.loader import templates_dir
from m2gen.errors import M2GenError


def test_the_templates_are_found():
    assert (templates_dir() / "README.md").is_file()


def test_inside_the_package_comes_first(tmp_path):
    package = tmp_path / "m2gen"
    (package / "templates").mkdir(parents=True)
    (tmp_path / "templates").mkdir()
    assert templates_dir(package) == package / "templates"
    (package / "templates").rmdir()
    assert templates_dir(package) == tmp_path / "templates"


def test_no_templates_is_an_error(tmp_path):
    with pytest.raises(M2GenError, match="neither"):
        templates_dir(tmp_path / "m2gen")
