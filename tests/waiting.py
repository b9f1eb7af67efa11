"""Bounded polling, the only way a test waits for another process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout: float, what: str = "") -> None:
    """Poll `condition` until it is true; fail after `timeout` seconds, naming `what` was awaited."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        pause.wait(0.01)
