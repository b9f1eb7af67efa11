"""Kill paying workers at random and compare the ledger with the bill of an endpoint that knows nothing of it.

Four workers buy replies with the real client: `ClaudeTeacher` with its cashier, asker, retries and official SDK, over a
real socket, from the scripted endpoint of the tests, under a limit that is raised only when it is all but used up. The
endpoint answers, answers late, fails after billing, refuses without billing, hangs up or reports nonsense; and workers
get SIGKILL when a call is reserved and not sent, sent and not billed, billed and not answered, answered and not
settled, or at any other moment. Promises, each looked at whenever something is billed and every few milliseconds:

    bill ≤ spent + reserved ≤ limit; no request sent without a reservation of its own; no request settled twice; no
    stored reply bought again; no request charged less than it was billed; the totals can be rebuilt from the calls

Exit code 1 only when a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic

from opd_core.control.processes import try_lock
from opd_core.errors import LedgerDamagedError
from opd_core.message_params import API_VERSION, body_bytes
from opd_core.money.amounts import format_usd
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable, reservation_pico
from opd_core.money.response_cache import request_key

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no installed package
from benchmarks.ledger_kill_worker import (
    BY_ENDPOINT,
    MAX_TOKENS,
    MODEL,
    MOMENTS,
    MONTH_LIMIT_PICO,
    RUN_ID,
    TICK_SECONDS,
    VERSION,
    work,
)
from tests.endpoint import Endpoint, JsonObject, Reply, error, request_data

WORKERS = 4
LATE_SECONDS = 1.4  # more than the client waits
STUCK_SECONDS = 60.0
OUTCOMES = {"answer": 80, "refuse": 6, "fail": 5, "cut": 3, "hang up": 2, "nonsense": 3, "late": 1}


class Witness:
    """Every look at whether the ledger keeps up with the bill."""

    def __init__(self, database: Path) -> None:
        self.looks = 0
        self.broken: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._total_pico = 0
        self._billed: Counter[str] = Counter()
        self._arrived: Counter[str] = Counter()
        self._file = sqlite3.connect(database, timeout=30, isolation_level=None, check_same_thread=False)
        # Not by looking but by trigger: every single change of a total is judged.
        self._file.execute("CREATE TABLE breaches (scope TEXT)")
        self._file.execute(
            "CREATE TRIGGER breach AFTER UPDATE ON budgets WHEN NEW.spent_pico + NEW.reserved_pico > NEW.limit_pico "
            "BEGIN INSERT INTO breaches VALUES (NEW.scope); END"
        )

    def arrive(self, key: str) -> None:
        """A request has come: it must have a reservation of its own."""
        with self._lock:
            self._arrived[key] += 1
            (reservations,) = self._one("SELECT COUNT(*) FROM calls WHERE request_key = ?", key)
            if reservations < self._arrived[key]:
                self.broken["a request was sent without a reservation"] += 1

    def bill(self, key: str, pico: int) -> None:
        """A request was billed; look at once: this is when the bill is highest against the ledger."""
        with self._lock:
            self._billed[key] += pico
            self._total_pico += pico
            self._look()

    def look(self) -> None:
        """Compare bill, ledger and limit at this moment."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        self.looks += 1
        for used, limit in self._file.execute("SELECT spent_pico + reserved_pico, limit_pico FROM budgets"):
            if self._total_pico > used:
                self.broken["bill above spent + reserved"] += 1
            if used > limit:
                self.broken["spent + reserved above the limit"] += 1

    def final_look(self, ledger: Ledger) -> None:
        """What only the finished record can show."""
        self.look()
        for key, pico in self._billed.items():
            (charged,) = self._one("SELECT COALESCE(SUM(actual_pico), 0) FROM calls WHERE request_key = ?", key)
            if charged < pico:
                self.broken["a request was charged less than billed"] += 1
        for what, sql in (
            (
                "a request was settled twice",
                "SELECT COUNT(*) - COUNT(DISTINCT request_key) FROM calls WHERE state = 'settled'",
            ),
            (
                "a stored reply was bought again",
                "SELECT COUNT(*) FROM responses JOIN calls AS bought USING (call_id) JOIN calls AS again "
                "ON again.request_key = bought.request_key AND again.number > bought.number",
            ),
            ("a change took spent + reserved above the limit", "SELECT COUNT(*) FROM breaches"),
            ("a call stayed open", "SELECT COUNT(*) FROM calls WHERE state = 'open'"),
        ):
            self.broken[what] += self._one(sql)[0]
        try:
            ledger.rebuild_check()
        except LedgerDamagedError as damage:
            self.broken[f"rebuild check: {damage}"] += 1
        self.broken = +self.broken  # without the zeros

    def _one(self, sql: str, *values: str) -> tuple[int]:
        found: tuple[int] = self._file.execute(sql, values).fetchone()
        return found


class Fleet:
    """Worker processes, one a slot; a dead one is recovered and replaced."""

    def __init__(self, home: Path, url: str, seed: int, pool: int, kill_rate: float, ledger: Ledger) -> None:
        self.kills = 0
        self._home, self._ledger = home, ledger
        self._common = (home, url, pool, kill_rate)
        self._seed = seed
        # forked from one warm process without threads: importing the SDK takes a second, and there are hundreds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["anthropic.resources.messages", "opd_core.teachers.claude"])
        self._lock = threading.Lock()
        self._started = 0
        self._slots = [self._start() for _ in range(WORKERS)]

    def kill(self, pid: int) -> bool:
        """SIGKILL the worker with that number, if it is (still) one of ours."""
        with self._lock:
            for process in self._slots:
                if process.pid == pid and process.is_alive():
                    process.kill()
                    process.join()
                    return True
        return False

    def pids(self) -> list[int]:
        """The workers of this moment."""
        with self._lock:
            return [process.pid for process in self._slots if process.pid is not None]

    def replace_dead(self) -> None:
        """Forfeit what dead workers left, holding their locks, and start new ones."""
        with self._lock:
            dead = [place for place, process in enumerate(self._slots) if not process.is_alive()]
            for place in dead:
                if self._slots[place].exitcode != -signal.SIGKILL:
                    raise RuntimeError(f"a worker ended by itself with {self._slots[place].exitcode}")
                self.kills += 1
            if dead:
                self._ledger.recover(lambda owner: hold_lock(self._home / f"{owner}.lock"))
            for place in dead:
                self._slots[place] = self._start()

    def stop(self) -> None:
        """Let the workers finish their calls and end."""
        (self._home / "stop").touch()
        for process in self._slots:
            process.join(STUCK_SECONDS)
            self.kills += process.exitcode == -signal.SIGKILL
        self._ledger.recover(lambda owner: hold_lock(self._home / f"{owner}.lock"))

    def _start(self) -> Any:
        self._started += 1
        arguments = (f"worker_{self._started}", self._seed + self._started, *self._common)
        process = self._context.Process(target=work, args=arguments, daemon=True)
        process.start()
        return process


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Hold an owner's lock if it can be had; gives whether."""
    descriptor = try_lock(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


class DeadlyEndpoint(Endpoint):
    """The tests' endpoint, which also calls the witness and does the killing that needs to know the moment."""

    def __init__(self, witness: Witness, draw: random.Random, kill_rate: float) -> None:
        super().__init__(self.draw_reply)
        self.fleet: Fleet | None = None
        self.outcomes: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self._witness, self._draw, self._draw_lock = witness, draw, threading.Lock()
        self._kill_rate = kill_rate
        self._to_kill: dict[int, int] = {}  # a request's identity: the worker to kill when it is billed

    def draw_reply(self, params: JsonObject) -> Reply:
        """What becomes of a request, and whether its sender lives on."""
        self._witness.arrive(self._key(params))
        pid = self._sender(params)
        with self._draw_lock:
            outcome = self._draw.choices(list(OUTCOMES), list(OUTCOMES.values()))[0]
            self.outcomes[outcome] += 1
            is_fatal = self._draw.random() < self._kill_rate * len(BY_ENDPOINT) / MOMENTS
            moment = self._draw.choice(BY_ENDPOINT) if is_fatal else None
            usage = {
                "input_tokens": self._draw.randint(1, body_bytes(params)),
                "output_tokens": self._draw.randint(1, MAX_TOKENS),
            }
        if moment == BY_ENDPOINT[0]:
            self._kill(pid, moment)
        elif moment == BY_ENDPOINT[1]:
            self._to_kill[id(params)] = pid
        elif moment is not None:
            threading.Thread(target=self.kill_at_any_moment, daemon=True).start()
        return self._reply(outcome, params, usage)

    def message(self, params: JsonObject, reply: Reply, *, batch: bool = False) -> JsonObject:
        """The message and its charge, which the witness sees before anybody else."""
        with self._draw_lock:  # one charge at a time, so that the difference is this one's
            before = self.billed_pico
            message = super().message(params, reply, batch=batch)
            self._witness.bill(self._key(params), self.billed_pico - before)
        pid = self._to_kill.pop(id(params), None)
        if pid is not None:
            self._kill(pid, BY_ENDPOINT[1])
        return message

    def kill_at_any_moment(self) -> None:
        """Kill a random worker a little later, wherever it is then."""
        with self._draw_lock:
            delay, pick = self._draw.uniform(0, 0.05), self._draw.randrange(WORKERS)
        time.sleep(delay)
        if self.fleet is not None:
            self._kill(self.fleet.pids()[pick], BY_ENDPOINT[2])

    def _reply(self, outcome: str, params: JsonObject, usage: dict[str, int]) -> Reply:
        text = json.dumps({"reference": f"Answer to {request_data(params)['conversation'][-1]['content']}"})
        if outcome == "refuse":
            return error(529, "overloaded_error")
        if outcome == "fail":
            return error(500, bill=True)
        if outcome == "late":
            held = threading.Event()
            threading.Timer(LATE_SECONDS, held.set).start()
            return Reply(text, usage=usage, hold=held)
        if outcome == "nonsense":
            return Reply(text, usage={**usage, "input_tokens": "NaN"})
        return Reply(text, usage=usage, cut=40 if outcome == "cut" else None, drop=outcome == "hang up")

    def _key(self, params: JsonObject) -> str:
        others = {name: value for name, value in params.items() if name not in ("model", "messages")}
        return request_key(self.url, API_VERSION, params["model"], others, params["messages"], VERSION, 0)

    def _sender(self, params: JsonObject) -> int:
        headers = next(headers for _, _, headers, body in reversed(list(self.requests)) if body is params)
        return int(headers["authorization"].rpartition("-")[2])

    def _kill(self, pid: int, moment: str) -> None:
        if self.fleet is not None and self.fleet.kill(pid):
            with self._draw_lock:
                self.moments[moment] += 1


def run(home: Path, kills: int, calls: int, seed: int) -> dict[str, Any]:
    """The whole trial; returns what there is to report."""
    draw, kill_rate = random.Random(seed), 1.1 * kills / calls
    ledger = Ledger(home / "opd.db", month_limit_pico=MONTH_LIMIT_PICO)
    price = PriceTable.load().price_for(MODEL, 8000, datetime.now(UTC).date())
    largest = reservation_pico(price, 8000, MAX_TOKENS)
    ledger.open_budget(RUN_ID, 6 * largest)
    witness, raises = Witness(home / "opd.db"), 0
    with DeadlyEndpoint(witness, draw, kill_rate) as endpoint:
        started = time.perf_counter()
        fleet = Fleet(home, endpoint.url, seed, 2 * calls, kill_rate, ledger)
        endpoint.fleet = fleet
        seen, seen_at = 0, time.monotonic()
        while len(endpoint.requests) < calls or fleet.kills < kills:
            time.sleep(TICK_SECONDS)
            witness.look()
            fleet.replace_dead()
            totals = ledger.totals(RUN_ID)
            if totals.left_pico < largest:
                ledger.raise_limit(RUN_ID, totals.limit_pico + 6 * largest)
                raises += 1
            if len(endpoint.requests) >= calls:
                endpoint.kill_at_any_moment()
            if len(endpoint.requests) > seen:
                seen, seen_at = len(endpoint.requests), time.monotonic()
            elif time.monotonic() - seen_at > STUCK_SECONDS:
                raise RuntimeError(f"no request for {STUCK_SECONDS:g} s")
        endpoint.fleet = None
        fleet.replace_dead()
        fleet.stop()
        seconds = time.perf_counter() - started
    witness.final_look(ledger)
    moments = Counter((home / "moments").read_text(encoding="utf-8").splitlines()) + endpoint.moments
    return report(ledger, witness, endpoint, seconds) | {
        "kills": fleet.kills,
        "kills_by_moment": dict(moments),
        "limit_raises": raises,
        "seed": seed,
        "broken_promises": dict(witness.broken),
    }


def report(ledger: Ledger, witness: Witness, endpoint: DeadlyEndpoint, seconds: float) -> dict[str, Any]:
    """All figures, plain data."""
    totals, sent = ledger.totals(RUN_ID), len(endpoint.requests)
    return {
        "seconds": round(seconds, 1),
        "workers": WORKERS,
        "sqlite": sqlite3.sqlite_version,
        "sdk": anthropic.__version__,
        "reservations": totals.calls,
        "requests": sent,
        "requests_per_second": round(sent / seconds, 1),
        "outcomes": dict(endpoint.outcomes),
        "settled": totals.settled_calls,
        "released": totals.released_calls,
        "forfeited": totals.forfeited_calls,
        "cache_hits": totals.cache_hits,
        "bill_pico": endpoint.billed_pico,
        "spent_pico": totals.spent_pico,
        "reserved_pico": totals.reserved_pico,
        "limit_pico": totals.limit_pico,
        "looks": witness.looks,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    for name, value in figures.items():
        if name.endswith("_pico"):
            name, value = name.removesuffix("_pico"), format_usd(value)
        elif isinstance(value, dict):
            value = "; ".join(f"{part}: {count}" for part, count in value.items()) or "none"
        print(f"{name.replace('_', ' '):<21}{value}")


def main() -> int:
    """Run the trial; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Kill paying workers and compare the ledger with an independent bill.")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at least (200)")
    parser.add_argument("--calls", type=int, default=2000, help="HTTP attempts at least (2000)")
    parser.add_argument("--quick", action="store_true", help="10 kills and 100 attempts, to see that it works")
    parser.add_argument("--seed", type=int, default=0, help="of kills, outcomes and tokens (0)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    kills, calls = (10, 100) if options.quick else (options.kills, options.calls)
    home = Path(tempfile.mkdtemp(prefix="ledger_kill_"))
    try:
        (home / "moments").touch()
        figures = run(home, kills, calls, options.seed)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if figures["broken_promises"] else 0


if __name__ == "__main__":
    sys.exit(main())
