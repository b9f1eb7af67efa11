"""Time and chance as the control plane meets them, in one place; `tests/simulation` brings its own."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def utc_moment() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Seams:
    """What a simulation replaces.

    Attributes:
        now: the calendar, in UTC; a person may set it, so it decides nothing but what people read and the month.
        monotonic: seconds that only grow, for durations; it may stand still while the machine sleeps.
        sleep: wait so many seconds.
        token: so many random bytes, as hexadecimal digits.
    """

    now: Callable[[], datetime] = utc_moment
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    token: Callable[[int], str] = secrets.token_hex


REAL = Seams()
"""This machine's."""
