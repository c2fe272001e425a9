"""The Jinja environment of the templates' dialect (templates/README.md)."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from m2gen.codegen.loader import templates_dir
from m2gen.errors import RenderError

_LINE_STATEMENTS = {"triton": "#%", "cpp": "//%"}  # control flow stands on what the language takes for comments


@lru_cache(maxsize=4)
def environment(language: str) -> Environment:
    """The environment of a language's templates; RenderError for a language that has none."""
    if language not in _LINE_STATEMENTS:
        known = ", ".join(_LINE_STATEMENTS)
        raise RenderError(
            f"a template in {language!r}", f"templates are in {known}", "put it into one of these folders"
        )
    return Environment(
        loader=FileSystemLoader(templates_dir()),
        line_statement_prefix=_LINE_STATEMENTS[language],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
