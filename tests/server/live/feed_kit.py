"""A home that changes, and readers of its live feed, for the tests of the feed and its doors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from server.live.feed import Feed, Messages

KEPT = ("state", "warning", "checkpoint", "metrics")


@dataclass
class Writer:
    """A worker's part: what it writes into the home."""

    home: HomePaths
    store: RunStore
    epoch: int = 0

    @classmethod
    def of(cls, home: HomePaths) -> Writer:
        home.prepare()
        return cls(home, RunStore(home.database))

    def begin(self, run_id: str = "run", total_steps: int = 30) -> None:
        self.store.create(run_id, "distillation", {"seed": 1}, total_steps=total_steps)
        self.epoch = self.store.claim(run_id)
        self.store.transition(run_id, "running", epoch=self.epoch)

    def step(self, step: int, run_id: str = "run", series: Any = "train", **line: Any) -> None:
        values = {"step": step, "kl_loss": 1.0 / (step + 1), **line}
        self.store.append_metrics(run_id, self.epoch, series, values, step=step)

    def phase(self, name: str, run_id: str = "run", **columns: Any) -> None:
        self.store.heartbeat(run_id, self.epoch, phase=name, **columns)

    def end(self, run_id: str = "run") -> None:
        self.store.finish(run_id, "completed", "finished", epoch=self.epoch, message="Done.")

    def log(self, text: str, run_id: str = "run") -> None:
        with self.home.log(run_id).open("a", encoding="utf-8") as file:
            file.write(text)


def quick_feed(home: HomePaths, **options: Any) -> Feed:
    """A feed that looks without pause and tends nothing."""
    return Feed(home, lambda: None, **{"poll_seconds": 0.001, **options})


async def take(messages: Messages, count: int) -> list[dict[str, Any]]:
    """The data of the next messages."""
    found: list[dict[str, Any]] = []
    with anyio.fail_after(20):
        while len(found) < count:
            message = await anext(messages)
            if message is not None:
                told = json.loads(message.text)
                assert told["type"] == "opd_progress" and told["data"]["sequence"] == message.sequence
                found.append(told["data"])
    return found


async def take_until(messages: Messages, kind: str, **values: Any) -> list[dict[str, Any]]:
    """The data of all messages up to the first one of a kind with these values."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["kind"] != kind or any(found[-1][name] != value for name, value in values.items()):
        found += await take(messages, 1)
    return found


@asynccontextmanager
async def listening(feed: Feed, run_id: str | None = None, after: int | None = None) -> AsyncIterator[Messages]:
    """A reader for the length of a block."""
    async with feed.reader(run_id, after) as messages, aclosing(messages):
        yield messages


def kept(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with a sequence of their own."""
    return [data for data in found if data["kept"]]
