"""A process that has imported what takes long, and forks for every program it is given.

Each program is as in an interpreter of its own, with its own arguments and environment; only what `imports` loads is
there already. It must run nothing that starts threads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_SERVER = """
import atexit, json, os, sys, traceback

def child(code, words, environment, out, err):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, at in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), at)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["-c", *words]
    status = 0
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)

exec(sys.argv[1])
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        child(*json.loads(line))
    print("done", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Use it in a `with`: its end ends the process."""

    def __init__(self, imports: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder  # for what programs say
        words = [sys.executable, "-c", _SERVER, imports]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(self, code: str, *words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        said = [self.folder / name for name in ("stdout", "stderr")]
        for path in said:
            path.unlink(missing_ok=True)
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps([code, words, dict(environment), *map(str, said)]), file=self._server.stdin, flush=True)
        while (line := self._server.stdout.readline().split())[:1] != ["done"]:
            assert line or self._server.poll() is None, "the imports failed"
        return subprocess.CompletedProcess(words, int(line[1]), *(path.read_text(errors="replace") for path in said))
