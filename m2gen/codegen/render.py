"""A spec to source text: the template sees the spec's fields and properties, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from jinja2 import TemplateError

from m2gen.codegen.environment import environment
from m2gen.errors import CompileError
from m2gen.kernels.spec import KernelSpec

TL_DTYPES = {"fp16": "tl.float16", "bf16": "tl.bfloat16", "fp32": "tl.float32", "bf16_emulated": "tl.float32"}


@dataclass(frozen=True, slots=True)
class Source:
    """A rendered kernel: `name` is the function's, `digest` names the text."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        return sha256(self.text.encode()).hexdigest()[:12]


def fields(spec: KernelSpec) -> dict[str, object]:
    """Every public field and property of a spec."""
    names = [name for name in dir(spec) if not name.startswith("_")]
    values = {name: getattr(spec, name) for name in names}
    return {name: value for name, value in values.items() if not callable(value)}


def render(spec: KernelSpec) -> Source:
    """The text of a spec's template, in the dialect of the language whose folder it lies in."""
    language = spec.template.partition("/")[0]
    dtypes = {"tl_dtype": TL_DTYPES} if language == "triton" else {}
    try:
        text = environment(language).get_template(spec.template).render(**fields(spec), **dtypes)
    except TemplateError as error:
        found = f"templates/{spec.template} does not go with it ({type(error).__name__}: {error})"
        raise CompileError(f"the source of {spec.name}", found, "see templates/README.md") from error
    return Source(spec.name, text)
