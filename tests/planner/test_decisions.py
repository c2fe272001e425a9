from __future__ import annotations

import difflib

import decisions
import pytest


def test_decisions_are_the_committed_ones():
    now = "\n".join(decisions.decisions()) + "\n"
    committed = decisions.COMMITTED.read_text()
    if now == committed:
        return
    diff = difflib.unified_diff(committed.splitlines(), now.splitlines(), "committed", "now", lineterm="", n=1)
    pytest.fail("\n".join([*diff, f"if this is what you want: {decisions.COMMAND}"]), pytrace=False)
