"""Kill paying workers at random and compare the ledger with the bill of an endpoint that knows nothing of it.

Four workers buy replies from a local HTTP endpoint through the real ledger, price table and response cache, under a
limit that is raised only when it is all but used up. The endpoint answers, answers late, fails after billing, refuses
without billing or reports nonsense; and workers get SIGKILL before their call is billed, after it, after the reply, or
at any other moment. Promises, each looked at whenever something is billed and every few milliseconds:

    bill ≤ spent + reserved ≤ limit; no request settled twice; no stored reply bought again; no call charged less than
    it was billed; the totals can be rebuilt from the calls

Exit code 1 only when a promise is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opd_core.control.processes import try_lock
from opd_core.errors import BadUsageError, BudgetExceededError, DuplicateCallError, LedgerDamagedError
from opd_core.money.amounts import PICO_PER_USD, format_usd
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable, Usage, cost_pico, prompt_upper_bound, reservation_pico
from opd_core.money.response_cache import ResponseCache, request_key

WORKERS = 4
RUN_ID = "benchmark"
MODEL = "claude-haiku-4-5"
INPUT_PICO, OUTPUT_PICO = 1_000_000, 5_000_000  # the endpoint's own price list: $1 and $5 per million tokens
MAX_TOKENS = 400
MONTH_LIMIT_PICO = 1_000 * PICO_PER_USD
CLIENT_TIMEOUT_SECONDS, LATE_SECONDS = 0.3, 0.5
TICK_SECONDS = 0.005
STUCK_SECONDS = 60.0
OUTCOMES = {"answer": 80, "refuse": 6, "fail": 5, "cut": 4, "nonsense": 4, "late": 1}
KILL_MOMENTS = ("before the bill", "after the bill", "after the reply", "any moment")


class Witness:
    """The independent bill, and every look at whether the ledger keeps up with it."""

    def __init__(self, database: Path) -> None:
        self.lock = threading.Lock()
        self.billed: dict[str, int] = {}
        self.total_pico = 0
        self.looks = 0
        self.broken: Counter[str] = Counter()
        self._file = sqlite3.connect(database, timeout=30, isolation_level=None, check_same_thread=False)
        # Not by looking but by trigger: every single change of a total is judged.
        self._file.execute("CREATE TABLE breaches (scope TEXT)")
        self._file.execute(
            "CREATE TRIGGER breach AFTER UPDATE ON budgets WHEN NEW.spent_pico + NEW.reserved_pico > NEW.limit_pico "
            "BEGIN INSERT INTO breaches VALUES (NEW.scope); END"
        )

    def bill(self, call_id: str, key: str, pico: int) -> None:
        """Bill a call, and look at once: this is when the bill is highest against the ledger."""
        with self.lock:
            self.billed[call_id] = self.billed.get(call_id, 0) + pico
            self.total_pico += pico
            self._look()
            states = [state for (state,) in self._file.execute("SELECT state FROM calls WHERE call_id = ?", (call_id,))]
            if states not in (["open"], ["forfeited"]):
                self.broken[f"billed while {states}"] += 1
            if self._file.execute("SELECT 1 FROM responses WHERE request_key = ?", (key,)).fetchone():
                self.broken["a stored reply was bought again"] += 1

    def look(self) -> None:
        """Compare bill, ledger and limit at this moment."""
        with self.lock:
            self._look()

    def _look(self) -> None:
        self.looks += 1
        for used, limit in self._file.execute("SELECT spent_pico + reserved_pico, limit_pico FROM budgets"):
            if self.total_pico > used:
                self.broken["bill above spent + reserved"] += 1
            if used > limit:
                self.broken["spent + reserved above the limit"] += 1

    def final_look(self, ledger: Ledger) -> None:
        """What only the finished record can show."""
        self.look()
        charged = dict(self._file.execute("SELECT call_id, actual_pico FROM calls"))
        for call_id, pico in self.billed.items():
            if charged.get(call_id) is None or charged[call_id] < pico:
                self.broken["a call was charged less than billed"] += 1
        twice = "SELECT request_key FROM calls WHERE state = 'settled' GROUP BY request_key HAVING COUNT(*) > 1"
        self.broken["a request was settled twice"] += len(self._file.execute(twice).fetchall())
        breaches = self._file.execute("SELECT COUNT(*) FROM breaches").fetchone()[0]
        self.broken["a change took spent + reserved above the limit"] += int(breaches)
        try:
            ledger.rebuild_check()
        except LedgerDamagedError as error:
            self.broken[f"rebuild check: {error}"] += 1
        self.broken = +self.broken  # without the zeros


class Fleet:
    """Worker processes, one a slot; a dead one is recovered and replaced."""

    def __init__(self, home: Path, url: str, seed: int, pool: int, ledger: Ledger) -> None:
        self.kills: Counter[str] = Counter()
        self._home, self._url, self._seed, self._pool, self._ledger = home, url, seed, pool, ledger
        self._context = multiprocessing.get_context("forkserver")
        self._lock = threading.Lock()
        self._started = 0
        self._slots = [self._start() for _ in range(WORKERS)]

    def kill(self, pid: int, moment: str) -> None:
        """SIGKILL the worker with that number, if it is (still) one of ours."""
        with self._lock:
            for process in self._slots:
                if process.pid == pid and process.is_alive():
                    process.kill()
                    process.join()
                    self.kills[moment] += 1

    def pids(self) -> list[int]:
        """The workers of this moment."""
        with self._lock:
            return [process.pid for process in self._slots if process.pid is not None]

    def replace_dead(self) -> None:
        """Forfeit what dead workers left, holding their locks, and start new ones."""
        with self._lock:
            dead = [place for place, process in enumerate(self._slots) if not process.is_alive()]
            for place in dead:
                if self._slots[place].exitcode != -9:
                    raise RuntimeError(f"a worker ended by itself with {self._slots[place].exitcode}")
            if dead:
                self._ledger.recover(lambda owner: hold_lock(self._home / f"{owner}.lock"))
            for place in dead:
                self._slots[place] = self._start()

    def stop(self) -> None:
        """Let the workers finish their calls and end."""
        (self._home / "stop").touch()
        for process in self._slots:
            process.join(STUCK_SECONDS)
        self._ledger.recover(lambda owner: hold_lock(self._home / f"{owner}.lock"))

    def _start(self) -> Any:
        self._started += 1
        arguments = (self._home, self._url, f"worker_{self._started}", self._seed + self._started, self._pool)
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


def work(home: Path, url: str, owner: str, seed: int, pool: int) -> None:
    """A worker: take a request, look into the cache, reserve, send once, settle; until told to stop or killed."""
    while try_lock(home / f"{owner}.lock") is None:
        time.sleep(0.001)
    draw = random.Random(seed)
    database = home / "opd.db"
    ledger, cache = Ledger(database, month_limit_pico=MONTH_LIMIT_PICO), ResponseCache(database)
    table = PriceTable.load()
    while not (home / "stop").exists():
        # Half of the time all workers want the same request in the same moment.
        number = int(time.monotonic() * 40) % pool if draw.random() < 0.5 else draw.randrange(pool)
        messages = [{"role": "user", "content": f"Question {number}"}]
        key = request_key(url, "2026-10-21", MODEL, {"max_tokens": MAX_TOKENS}, messages, "1", 0)
        body = cache.get(key)
        if body is not None:
            if json.loads(body)["key"] != key:
                raise RuntimeError("the cache gave another request's reply")
            ledger.count_cache_hits(RUN_ID)
            continue
        with contextlib.suppress(DuplicateCallError):
            try:
                buy(ledger, table, url, key, json.dumps(messages), owner)
            except BudgetExceededError:
                time.sleep(TICK_SECONDS)


def buy(ledger: Ledger, table: PriceTable, url: str, key: str, request: str, owner: str) -> None:
    """One paid attempt, as the teacher's client makes it."""
    today = datetime.now(UTC).date()
    price = table.price_for(MODEL, prompt_upper_bound(len(request)), today)
    amount = reservation_pico(price, len(request), MAX_TOKENS, cache_write="none")
    call_id = ledger.reserve(RUN_ID, key, MODEL, price.version, amount, owner)
    asked = {"call_id": call_id, "key": key, "bound": prompt_upper_bound(len(request)), "pid": os.getpid()}
    connection = http.client.HTTPConnection(url, timeout=CLIENT_TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/v1/messages", json.dumps(asked))
        response = connection.getresponse()
        status, body = response.status, response.read().decode()
        if status == 529:
            ledger.release(call_id, "529")
        elif status != 200:
            ledger.forfeit(call_id, str(status))
        else:
            usage = Usage.parse(json.loads(body)["usage"])
            ledger.settle(call_id, cost_pico(table, MODEL, usage, when=today), usage.as_json(), "req", body)
    except (OSError, http.client.HTTPException, BadUsageError) as error:
        ledger.forfeit(call_id, type(error).__name__)
    finally:
        connection.close()


class Endpoint(ThreadingHTTPServer):
    """Answers on a loopback port, keeps the bill and does the killing that needs to know the moment."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, witness: Witness, draw: random.Random, kills: int, calls: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.witness = witness
        self.fleet: Fleet | None = None
        self.requests = 0
        self.outcomes: Counter[str] = Counter()
        self._draw, self._lock = draw, threading.Lock()
        self._kill_at = set(draw.sample(range(1, calls + 1), min(kills, calls)))

    def draw_fate(self, bound: int) -> tuple[str, str | None, int, int]:
        """What becomes of a request: outcome, moment of a kill or None, tokens read, tokens written."""
        with self._lock:
            self.requests += 1
            outcome = self._draw.choices(list(OUTCOMES), list(OUTCOMES.values()))[0]
            self.outcomes[outcome] += 1
            moment = self._draw.choice(KILL_MOMENTS) if self.requests in self._kill_at else None
            return outcome, moment, self._draw.randint(1, bound), self._draw.randint(1, MAX_TOKENS)

    def kill_at_any_moment(self) -> None:
        """Kill a random worker a little later, wherever it is then."""
        with self._lock:
            delay, pick = self._draw.uniform(0, 0.03), self._draw.randrange(WORKERS)
        if self.fleet is not None:
            time.sleep(delay)
            self.fleet.kill(self.fleet.pids()[pick], KILL_MOMENTS[3])


class Handler(BaseHTTPRequestHandler):
    """One request to the endpoint."""

    server: Endpoint

    def do_POST(self) -> None:
        """Bill, answer and kill as drawn."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        outcome, moment, tokens_in, tokens_out = self.server.draw_fate(asked["bound"])
        self._kill(asked["pid"], moment, KILL_MOMENTS[0])
        if outcome != "refuse":
            self.server.witness.bill(asked["call_id"], asked["key"], tokens_in * INPUT_PICO + tokens_out * OUTPUT_PICO)
        self._kill(asked["pid"], moment, KILL_MOMENTS[1])
        if outcome == "late":
            time.sleep(LATE_SECONDS)
        usage = {"input_tokens": "NaN" if outcome == "nonsense" else tokens_in, "output_tokens": tokens_out}
        body = json.dumps({"key": asked["key"], "usage": usage}).encode()
        with contextlib.suppress(OSError):
            self.send_response({"refuse": 529, "fail": 500}.get(outcome, 200))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if outcome == "cut" else body)
            self.wfile.flush()
        self._kill(asked["pid"], moment, KILL_MOMENTS[2])
        if moment == KILL_MOMENTS[3]:
            self.server.kill_at_any_moment()

    def _kill(self, pid: int, moment: str | None, now: str) -> None:
        if moment == now and self.server.fleet is not None:
            self.server.fleet.kill(pid, now)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def run(home: Path, kills: int, calls: int, seed: int) -> dict[str, Any]:
    """The whole trial; returns what there is to report."""
    draw = random.Random(seed)
    ledger = Ledger(home / "opd.db", month_limit_pico=MONTH_LIMIT_PICO)
    table = PriceTable.load()
    price = table.price_for(MODEL, 4000, datetime.now(UTC).date())
    step = 6 * reservation_pico(price, 60, MAX_TOKENS, cache_write="none")
    ledger.open_budget(RUN_ID, step)
    witness = Witness(home / "opd.db")
    endpoint = Endpoint(witness, draw, kills, calls)
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    started = time.perf_counter()
    fleet = Fleet(home, f"127.0.0.1:{endpoint.server_port}", seed, 2 * calls, ledger)
    endpoint.fleet = fleet
    seen, seen_at, raises = 0, time.monotonic(), 0
    while endpoint.requests < calls or fleet.kills.total() < kills:
        time.sleep(TICK_SECONDS)
        witness.look()
        fleet.replace_dead()
        totals = ledger.totals(RUN_ID)
        if totals.left_pico < step // 6:
            ledger.raise_limit(RUN_ID, totals.limit_pico + step)
            raises += 1
        if endpoint.requests >= calls:
            endpoint.kill_at_any_moment()
        if endpoint.requests > seen:
            seen, seen_at = endpoint.requests, time.monotonic()
        elif time.monotonic() - seen_at > STUCK_SECONDS:
            raise RuntimeError(f"no request for {STUCK_SECONDS:g} s")
    endpoint.fleet = None
    fleet.replace_dead()
    fleet.stop()
    seconds = time.perf_counter() - started
    endpoint.shutdown()
    witness.final_look(ledger)
    return report(ledger, witness, endpoint, fleet, seconds, raises) | {"seed": seed}


def report(
    ledger: Ledger, witness: Witness, endpoint: Endpoint, fleet: Fleet, seconds: float, raises: int
) -> dict[str, Any]:
    """All figures, plain data."""
    totals = ledger.totals(RUN_ID)
    return {
        "seconds": round(seconds, 1),
        "workers": WORKERS,
        "sqlite": sqlite3.sqlite_version,
        "calls": endpoint.requests,
        "calls_per_second": round(endpoint.requests / seconds, 1),
        "outcomes": dict(endpoint.outcomes),
        "kills": fleet.kills.total(),
        "kills_by_moment": dict(fleet.kills),
        "settled": totals.settled_calls,
        "released": totals.released_calls,
        "forfeited": totals.forfeited_calls,
        "cache_hits": totals.cache_hits,
        "limit_raises": raises,
        "bill_pico": witness.total_pico,
        "spent_pico": totals.spent_pico,
        "reserved_pico": totals.reserved_pico,
        "limit_pico": totals.limit_pico,
        "looks": witness.looks,
        "broken_promises": dict(witness.broken),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    for name, value in figures.items():
        if name.endswith("_pico"):
            name, value = name.removesuffix("_pico"), format_usd(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{part} {count}" for part, count in value.items()) or "none"
        print(f"{name.replace('_', ' '):<18}{value}")


def main() -> int:
    """Run the trial; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Kill paying workers and compare the ledger with an independent bill.")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at least (200)")
    parser.add_argument("--calls", type=int, default=2000, help="HTTP attempts at least (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of kills, outcomes and tokens (0)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ledger_kill_"))
    try:
        figures = run(home, options.kills, options.calls, options.seed)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if figures["broken_promises"] else 0


if __name__ == "__main__":
    sys.exit(main())
