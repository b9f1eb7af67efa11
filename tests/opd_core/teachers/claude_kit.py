"""A Claude teacher on the scripted endpoint, with time of its own: it passes only when somebody waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from opd_core.guidance import Reference
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable
from opd_core.money.response_cache import ResponseCache
from opd_core.money.totals import Totals
from opd_core.state.jsonl import JsonlFile
from opd_core.teachers.claude import ClaudeSettings, ClaudeTeacher
from opd_core.teachers.completions import Append, CompletionsLog
from opd_core.teachers.transport import Transport, direct_transport
from opd_core.teachers.waiting import Seams
from opd_core.types import Message, Rollout
from tests.endpoint import Endpoint

KEY = "sk-ant-canary-0123456789abcdef"
RUN = "run_1"
DOLLAR = 10**12
START = datetime(2026, 11, 23, 12, tzinfo=UTC)


class FakeTime:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept = 0.0

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.slept += seconds
        await asyncio.sleep(0)


class Kit:
    """One run's money and teacher; several kits on one folder are several processes as far as SQLite is concerned."""

    def __init__(
        self, folder: Path, endpoint: Endpoint, *, limit_pico: int = DOLLAR, run_id: str = RUN, owner: str = "run_1:1"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.endpoint = endpoint
        self.run_id = run_id
        self.owner = owner
        self.time = FakeTime()
        self.database = folder / "opd.db"
        self.ledger = Ledger(self.database, month_limit_pico=100 * DOLLAR, clock=self.time.now)
        self.ledger.open_budget(run_id, limit_pico)
        self.folder = folder
        endpoint.now = self.time.now
        self.dead: set[str] = set()  # owners whose lock is free
        self.waits: list[tuple[str, float]] = []
        self.stop = False

    def teacher(self, *, transport: Transport = direct_transport, **settings: Any) -> ClaudeTeacher:
        defaults: dict[str, Any] = {
            "run_id": self.run_id,
            "owner": self.owner,
            "base_url": self.endpoint.url,
            "max_tokens": 500,
            "tokens_per_minute": 10_000_000,
        }
        seams = Seams(self.time.clock, self.time.now, self.time.sleep, lambda: 0.0, transport)
        return ClaudeTeacher(
            ClaudeSettings(**{**defaults, **settings}),
            ledger=self.ledger,
            cache=ResponseCache(self.database),
            prices=PriceTable.load(),
            completions=CompletionsLog(self._append_of, self.time.now),
            on_wait=lambda reason, seconds: self.waits.append((reason, seconds)),
            should_stop=lambda: self.stop,
            hold_owner=lambda owner: nullcontext(owner in self.dead),
            seams=seams,
        )

    def by_batch(self, conversations: Sequence[Sequence[Message]], **more: Any) -> list[Reference | None]:
        """References that may wait, of a new teacher that may use batches."""
        return self.teacher(use_batches=True).references(conversations, may_wait=True, **more)

    def _append_of(self, run_id: str) -> Append:
        return JsonlFile(self.folder / f"{run_id}.jsonl").append

    @property
    def totals(self) -> Totals:
        return self.ledger.totals(self.run_id)

    @property
    def texts(self) -> list[dict[str, Any]]:
        """The lines of the run's completions file."""
        return list(JsonlFile(self.folder / f"{self.run_id}.jsonl").read())

    def check_money(self) -> None:
        """What must hold at every moment: what was billed is counted, and what is counted is within the limit."""
        totals = self.totals
        assert self.endpoint.billed_pico <= totals.spent_pico + totals.reserved_pico <= totals.limit_pico
        self.ledger.rebuild_check()

    def recover(self) -> int:
        """What the next worker does when this one has died."""
        return self.ledger.recover(lambda owner: nullcontext(True))


def ask(text: str = "Say yes.") -> list[Message]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def reference(text: str = "Yes.") -> str:
    """The text of a good reply to a reference request."""
    return json.dumps({"reference": text})


def rollout(prompt: str = "Say yes.", completion: str = "No.", finish_reason: Any = "stop") -> Rollout:
    """An answer of the student."""
    return Rollout(
        rollout_id="r1",
        step=1,
        prompt_id="p1",
        messages=({"role": "user", "content": prompt},),
        prompt_ids=(1, 2),
        completion=completion,
        completion_ids=(3, 4),
        sampling_logprobs=(-0.1, -0.2),
        finish_reason=finish_reason,
        temperature=1.0,
        top_p=1.0,
        max_tokens=16,
        seed=1,
        timestamp="2026-11-23T12:00:00.000Z",
    )
