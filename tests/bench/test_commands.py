"""What the benchmarks' command line says of itself."""

from __future__ import annotations

import pytest

from bench import estimates


def test_estimates_say_what_their_columns_are(capsys: pytest.CaptureFixture[str]) -> None:
    estimates.main("sm90", "n=256 ")
    said = capsys.readouterr().out
    for part in ("at 3015 GB/s", "forward + gradients", "how many floors", "on an H100", "published", "its README's"):
        assert part in said
