"""A process whose output goes to a run's log, as a worker's does, and that writes what a test tells it to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from opd_core.state.run_log import RunLog
log = RunLog(Path(sys.argv[2]), int(sys.argv[3]))
answers = int(sys.argv[4])
for order in sys.stdin:
    verb, text = json.loads(order)
    if verb == "line":
        log.write_line(text)
    elif verb == "print":
        os.write(1, text.encode())
    else:
        log.keep_within()
    os.write(answers, b".")
"""


class LogWriter:
    """Starts the process with its log at `path`, at most `max_bytes` a generation; a context manager."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._answers, theirs = os.pipe()
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", PROGRAM, str(ROOT), str(path), str(max_bytes), str(theirs)],
                stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=[theirs], text=True,
            )  # fmt: skip
        finally:
            os.close(output)
            os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)
        os.close(self._answers)

    def line(self, text: str) -> None:
        """A line of our own."""
        self._order("line", text)

    def print(self, text: str) -> None:
        """What a library prints past us."""
        self._order("print", text)

    def keep_within(self) -> None:
        """The look at the size that a worker does every second."""
        self._order("keep", "")

    def _order(self, verb: str, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, text]) + "\n")
        self._process.stdin.flush()
        assert os.read(self._answers, 1) == b".", "the process has died"
