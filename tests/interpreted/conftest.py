"""These tests need Triton's interpreter, which is chosen when triton is first imported: tests/test_interpreted.py runs
them in processes of their own, with TRITON_INTERPRET=1."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
