"""Without a home, or with one that cannot be used, everything runs, and the log says where things are kept instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m2gen.cache import compiled, store, wisdom
from m2gen.config import Config
from m2gen.errors import ConfigError
from tests.forks import Forks

IMPORTS = """
import torch, sympy, m2gen
from m2gen.cache import store
from m2gen.config import config
m2gen.fftconv, m2gen.depthwise_conv1d, m2gen.plan
config.cache_clear()  # M2GEN_CHECK_FINITE is read at import
assert store.source_folder.cache_info().currsize == 0, "where things are kept is not settled yet"
torch.set_num_threads(1)
"""
CODE = """
import os, sys
import torch, m2gen
from m2gen.cache import store, wisdom
from m2gen.config import config

def work(n):
    u, k = torch.randn(1, 4, n, dtype=torch.float64), torch.randn(4, n, dtype=torch.float64)
    want = torch.fft.irfft(torch.fft.rfft(u, 2 * n) * torch.fft.rfft(k, 2 * n), 2 * n)[..., :n]
    torch.testing.assert_close(m2gen.fftconv(u, k), want)
    m2gen.depthwise_conv1d(u, torch.randn(4, 3, dtype=torch.float64))
    assert m2gen.plan(f"fftconv n={n} h=4 b=1 fp32 causal").explain()
    assert wisdom.load(wisdom.place()) == [] and wisdom.constants("nothing", "x") == {}

if "stranger" in sys.argv:  # a user without an entry; what is imported late is imported before
    work(80)
    os.setuid(54321)
    del os.environ["M2GEN_CACHE_DIR"]
    for kept in (config, store.source_folder, wisdom.known):
        kept.cache_clear()
if "no entry" in sys.argv:
    import pwd
    def getpwuid(user): raise KeyError(user)
    pwd.getpwuid = getpwuid
work(64)
"""
ROOT = Path(__file__).parents[2]


Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A program with that HOME; the lines of its log."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("M2GEN_") and name != "HOME"}
    kept["PYTHONPATH"] = str(ROOT)
    with Forks(IMPORTS, tmp_path_factory.mktemp("said"), kept) as forks:

        def run(home: str | None, *how: str, **more: str) -> list[str]:
            done = forks.run(CODE, *how, environment={**kept, **({} if home is None else {"HOME": home}), **more})
            assert done.returncode == 0, done.stderr
            return [line for line in done.stderr.splitlines() if line.startswith("m2gen:")]

        yield run


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")


@pytest.mark.parametrize("cache", ["", "~/elsewhere"])
def test_a_user_without_an_entry_and_without_a_home(cache: str, run: Run) -> None:
    (said,) = run(None, "no entry", **({"M2GEN_CACHE_DIR": cache} if cache else {}))
    assert f"{cache or '~/.cache/m2gen'} cannot be written (there is no home folder)" in said


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700, 0o000, None], ids=str)
def test_a_home_that_cannot_be_written_or_read(mode: int | None, run: Run, tmp_path: Path) -> None:
    """Path.is_dir raises where a folder may not be looked into. None: no home at all."""
    home = tmp_path / "home"
    (home / ".cache" / "m2gen").mkdir(parents=True)
    home.chmod(mode or 0)
    warm = tmp_path / "warm"
    said = run(None if mode is None else str(home), "stranger", M2GEN_CACHE_DIR=str(warm))
    assert sum("cannot be written" in line for line in said) == 1
    assert sum("wisdom" in line for line in said) == len(said) - 1 <= 1  # the other line, if there is one


def test_a_home_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    (said,) = run(str(tmp_path / "home"))
    assert "cannot be written" in said


def test_no_home_in_the_environment(run: Run) -> None:
    """The system's entry tells."""
    assert len(run(None)) <= 1


def test_a_home_that_is_not_there(run: Run) -> None:
    (said,) = run("/proc/nowhere")  # nobody can make it
    assert "cannot be written" in said


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def expanduser(path: Path) -> Path:
        if path.parts[:1] == ("~",):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", expanduser)
    store.source_folder.cache_clear()


def test_places_without_a_home(homeless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for settings in (Config(), Config(wisdom="~/wisdom"), Config(cache_dir="~/x")):
        monkeypatch.setattr(store, "config", lambda settings=settings: settings)
        monkeypatch.setattr(wisdom, "config", lambda settings=settings: settings)
        store.source_folder.cache_clear()
        assert wisdom.place() == store.source_folder() / "wisdom" and wisdom.load(wisdom.place()) == []
    monkeypatch.setattr(wisdom, "config", lambda: Config(wisdom="~/wisdom", cache_dir=str(tmp_path)))
    assert wisdom.place() == tmp_path / "wisdom"
    store.source_folder.cache_clear()
    with pytest.raises(ConfigError, match="there is no home folder"):
        compiled.opened("~/kernels", ("zen5",))
