"""How fast the teacher may be asked: the user's tokens a minute, and what the provider's headers say.

One bucket of tokens fills at the user's rate. A call takes its estimate out before it is sent and is corrected by the
usage of its reply. Independently, the provider's `anthropic-ratelimit-*` headers name what is left until a reset, and
a 429 may name a time before which nothing should be sent. Calls are let through in the order they came.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime

from opd_core.teachers.waiting import Seams, Waits

LONGEST_RESET_SECONDS = 300.0  # the provider's windows are minutes; a later reset means that a clock is wrong
BYTES_PER_TOKEN = 3.0
_WINDOWS = ("requests", "tokens", "input-tokens", "output-tokens")
_COUNTED_BEFOREHAND = {"requests": 1, "output-tokens": 0}  # the provider counts output as it is written


class TokenLimiter:
    """Holds calls back; shared by all calls of one teacher."""

    def __init__(self, tokens_per_minute: int, seams: Seams) -> None:
        self._capacity = float(tokens_per_minute)
        self._per_second = tokens_per_minute / 60.0
        self._seams = seams
        self._level = self._capacity
        self._filled_at = seams.clock()
        self._held_until = seams.clock()
        self._queue: deque[tuple[object, int]] = deque()
        self._windows: dict[str, tuple[float, float]] = {}  # kind: what is left, and until when that holds
        self._mean_output: float | None = None

    def estimate(self, request_bytes: int, max_tokens: int) -> int:
        """Tokens a call probably uses: the output is guessed from the replies so far, at first `max_tokens`."""
        output = max_tokens if self._mean_output is None else min(max_tokens, 1.25 * self._mean_output)
        return int(request_bytes / BYTES_PER_TOKEN + output)

    async def acquire(self, tokens: int, waits: Waits) -> None:
        """Wait until a call of `tokens` may be sent, and take them.

        Raises:
            TeacherStoppedError: the run was asked to stop meanwhile.
        """
        ticket = (object(), tokens)
        self._queue.append(ticket)
        try:
            queued = sum(queued for _, queued in self._queue)
            expected = max(self._delay(tokens), (queued - self._level) / self._per_second)
            await waits.until(
                lambda: self._delay(tokens) if self._queue[0] is ticket else max(self._delay(tokens), 0.05),
                "Waiting for the teacher's rate limit (tokens per minute).",
                expected,
            )
            self._level -= tokens
            self._windows = {
                kind: (left - _COUNTED_BEFOREHAND.get(kind, tokens), reset)
                for kind, (left, reset) in self._windows.items()
            }
        finally:
            self._queue.remove(ticket)

    def correct(self, estimated: int, used: int) -> None:
        """Replace the estimate of a call that has ended by what it used: 0 when it never ran."""
        self._refill()
        self._level = min(self._capacity, self._level + estimated - used)

    def learn(self, output_tokens: int) -> None:
        """Take the length of a reply into later estimates."""
        mean = self._mean_output
        self._mean_output = float(output_tokens) if mean is None else 0.8 * mean + 0.2 * output_tokens

    def hold(self, seconds: float) -> None:
        """Let nothing through for `seconds`."""
        self._held_until = max(self._held_until, self._seams.clock() + seconds)

    def observe(self, headers: Mapping[str, str]) -> None:
        """Take over what the provider says is left until a reset; unreadable headers say nothing."""
        for kind in _WINDOWS:
            with contextlib.suppress(KeyError, ValueError, OverflowError):
                left = float(headers[f"anthropic-ratelimit-{kind}-remaining"])
                reset = datetime.fromisoformat(headers[f"anthropic-ratelimit-{kind}-reset"])
                moment = reset if reset.tzinfo else reset.replace(tzinfo=UTC)
                seconds = (moment - self._seams.now()).total_seconds()
                if 0 < seconds <= LONGEST_RESET_SECONDS:
                    self._windows[kind] = (left, self._seams.clock() + seconds)

    def _refill(self) -> None:
        now = self._seams.clock()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._per_second)
        self._filled_at = now

    def _delay(self, tokens: int) -> float:
        """Seconds until `tokens` could be taken, as things stand."""
        self._refill()
        now = self._seams.clock()
        self._windows = {kind: window for kind, window in self._windows.items() if window[1] > now}
        waits = [self._held_until - now]
        # a call larger than the bucket goes when the bucket is full, else it would never go
        waits.append((min(tokens, self._capacity) - self._level) / self._per_second)
        for kind, (left, reset) in self._windows.items():
            if left < max(1, _COUNTED_BEFOREHAND.get(kind, tokens)):
                waits.append(reset - now)
        longest = max(waits)
        return longest if longest > 1e-6 else 0.0
