"""A worker of `ledger_kill.py`: the real client on a way to the endpoint on which it dies now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from pathlib import Path

import httpx2

from opd_core.control.processes import try_lock
from opd_core.errors import BudgetExceededError, TeacherStoppedError, TeacherUnavailableError
from opd_core.guidance import Templates
from opd_core.money.amounts import PICO_PER_USD
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable
from opd_core.money.response_cache import ResponseCache
from opd_core.state.jsonl import JsonlFile
from opd_core.teachers.claude import ClaudeSettings, ClaudeTeacher
from opd_core.teachers.completions import CompletionsLog
from opd_core.teachers.transport import direct_transport
from opd_core.teachers.waiting import Seams, utc_moment
from opd_core.types import Message

RUN_ID = "benchmark"
MODEL = "claude-haiku-5-5"
MAX_TOKENS = 400
MONTH_LIMIT_PICO = 1_000 * PICO_PER_USD
CLIENT_TIMEOUT_SECONDS = 1.0
SPEED = 100.0
"""How much faster a worker's waits pass: pauses before another attempt, polls for somebody else's reply."""
TICK_SECONDS = 0.005
BY_ITSELF = ("reserved, not sent", "answered, not settled")
BY_ENDPOINT = ("sent, not billed", "billed, not answered", "any moment")
MOMENTS = len(BY_ITSELF) + len(BY_ENDPOINT)


def conversation(number: int) -> list[Message]:
    """A question that is asked for."""
    return [{"role": "user", "content": f"Question {number}"}]


VERSION = Templates().reference(conversation(0)).version


class MortalTransport(httpx2.AsyncBaseTransport):
    """The real way to the endpoint, on which the worker dies now and then: before the sending or after the reply."""

    def __init__(self, draw: random.Random, kill_rate: float, moments: Path) -> None:
        self._inner, self._draw, self._moments = direct_transport(), draw, moments
        self._chance = kill_rate / MOMENTS

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it, or die."""
        fate = self._draw.random()
        if fate < self._chance:
            self._die(BY_ITSELF[0])
        response = await self._inner.handle_async_request(request)
        if self._chance <= fate < 2 * self._chance:
            await response.aread()
            self._die(BY_ITSELF[1])
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    def _die(self, moment: str) -> None:
        with self._moments.open("a", encoding="utf-8") as file:
            file.write(f"{moment}\n")
        os.kill(os.getpid(), signal.SIGKILL)


def work(owner: str, seed: int, home: Path, url: str, pool: int, kill_rate: float) -> None:
    """A worker: ask for some references, cached or for money, until told to stop or killed."""
    logging.disable()  # hundreds of calls are charged in full here, on purpose
    while try_lock(home / f"{owner}.lock") is None:
        time.sleep(0.001)
    draw, stop = random.Random(seed), home / "stop"
    seams = Seams(
        clock=lambda: time.monotonic() * SPEED,
        sleep=lambda seconds: asyncio.sleep(seconds / SPEED),
        transport=lambda: MortalTransport(draw, kill_rate, home / "moments"),
    )
    teacher = ClaudeTeacher(
        ClaudeSettings(
            *(RUN_ID, owner, MODEL, url),
            max_tokens=MAX_TOKENS,
            timeout_seconds=CLIENT_TIMEOUT_SECONDS,
            max_concurrent=3,
            tokens_per_minute=10**9,
        ),
        ledger=Ledger(home / "opd.db", month_limit_pico=MONTH_LIMIT_PICO),
        cache=ResponseCache(home / "opd.db"),
        prices=PriceTable.load(),
        completions=CompletionsLog(lambda run_id: JsonlFile(home / f"{owner}.jsonl").append, utc_moment),
        on_wait=lambda reason, seconds: None,
        should_stop=stop.exists,
        hold_owner=lambda owner: contextlib.nullcontext(False),
        find_key=lambda: f"sk-worker-{os.getpid()}",
        seams=seams,
    )
    while not stop.exists():
        # Half of the time all workers want the same requests in the same moment.
        first = int(time.monotonic() * 40) % pool if draw.random() < 0.5 else draw.randrange(pool)
        try:
            found = teacher.references([conversation(first + more) for more in range(draw.randint(1, 4))])
        except (BudgetExceededError, TeacherUnavailableError):
            time.sleep(TICK_SECONDS)
        except TeacherStoppedError:
            break
        else:
            for more, reference in enumerate(found):
                if reference is not None and reference.text != f"Answer to Question {first + more}":
                    raise RuntimeError("another request's reply was given")
