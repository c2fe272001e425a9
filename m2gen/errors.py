"""Every error m2gen raises on purpose. A message has three parts: what was asked, what was found, what to do."""

from __future__ import annotations


class M2GenError(Exception):
    """Base of all m2gen errors; prints `asked: found. do`."""

    def __init__(self, asked: str, found: str, do: str) -> None:
        self.asked, self.found, self.do = asked, found, do
        # Exception.__init__ does no more, and Dynamo cannot trace a call of it: users of torch.compile would be told of
        # that and not of their error
        self.args = (asked, found, do)

    def __str__(self) -> str:
        return f"{self.asked}: {self.found}. {self.do[:1].upper()}{self.do[1:]}."


class ProblemError(M2GenError, ValueError):
    """The problem itself is not well formed: shapes, dtypes, modes, grammar."""


class PlanError(M2GenError):
    """No solver can do the problem on the device."""


class ConfigError(M2GenError, ValueError):
    """An `M2GEN_*` environment variable has a value that means nothing."""


class MissingError(M2GenError, ImportError):
    """An optional dependency is asked for and not installed."""


class RenderError(M2GenError):
    """A template cannot be rendered."""


class CompileError(M2GenError):
    """A generated kernel cannot be compiled or loaded here."""


class WisdomError(M2GenError):
    """Wisdom that is asked for is missing, damaged or stale."""
