"""Environment variables: read once, refused when they mean nothing."""

from __future__ import annotations

import logging

import pytest

from m2gen import ConfigError, config, log


def test_defaults_and_values() -> None:
    assert config._read({}) == config.Config()
    found = config._read({"M2GEN_LOG": "debug", "M2GEN_CHECK_FINITE": "1", "HOME": "x", "CXX": "c++"})
    assert found == config.Config(log="debug", check_finite=True, cxx="c++")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"M2GEN_LOG": "loud"}, r"M2GEN_LOG='loud': not a value.*debug"),
        ({"M2GEN_UNTRIED": "no"}, r"Use one of \['avoid', 'check', 'trust'\]"),
        ({"M2GEN_CHECK_FINITE": "yes"}, r"Use one of \['0', '1'\]"),
        ({"M2GEN_FAST": "1"}, r"variable M2GEN_FAST: it is not one m2gen reads"),
    ],
)
def test_a_value_that_means_nothing_raises(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config._read(env)


def test_once_says_a_thing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(log.logger(), "handlers", [handler])
    log.logger().setLevel(logging.INFO)
    for _ in range(3):
        log.once("a thing that is said once")
    log.logger().setLevel(config.config().log.upper())
    assert records == ["a thing that is said once"]
