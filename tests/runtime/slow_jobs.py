"""What a worker does in tests of workers: writes down when it began and ended; dies, hangs or fails where told to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


class SlowJob(NamedTuple):
    folder: str
    name: str
    seconds: float = 0.0
    how: str = ""


class Outcome(NamedTuple):
    error: str = ""


def serve(job: SlowJob) -> Outcome:
    note = Path(job.folder) / job.name
    unfinished = note.with_suffix(".unfinished")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(note.with_suffix(".begun"))  # whoever waits for it reads it at once
    if job.how == "dies":
        os._exit(3)
    time.sleep(job.seconds)
    note.with_suffix(".done").touch()
    return Outcome("it fails" if job.how == "fails" else "")
