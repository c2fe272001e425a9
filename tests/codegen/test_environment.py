from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from m2gen.codegen.environment import environment
from m2gen.errors import RenderError


@pytest.mark.parametrize(("language", "prefix"), [("triton", "#%"), ("cpp", "//%")])
def test_control_flow_stands_on_comment_lines(language, prefix):
    text = f"a\n{prefix} for i in range(2)\nb{{{{ i }}}}\n{prefix} endfor\n"
    assert environment(language).from_string(text).render() == "a\nb0\nb1\n"


def test_cpp_directives_are_not_control_flow():
    text = "#include <cstdint>\n#define N {{ n }}\n#undef N\n"
    assert environment("cpp").from_string(text).render(n=3) == text.replace("{{ n }}", "3")


@pytest.mark.parametrize("language", ["triton", "cpp"])
def test_an_undefined_name_is_an_error(language):
    with pytest.raises(UndefinedError):
        environment(language).from_string("{{ absent }}").render()


def test_another_language_is_an_error():
    with pytest.raises(RenderError, match="cuda"):
        environment("cuda")
