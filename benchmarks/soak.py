"""A hundred tiny runs, started by four servers at once, with random stops, kills and resumes, and what is left of them.

Each server is the real one over standard input and output, each run a real worker with a tiny real model. The clients
start runs (some of them twice under one request id), stop them in the queue and at work, kill workers at random
moments and resume what ended early. At the end, looked at from outside:

    every run is in a true terminal state: completed ones with every step once and an adapter, stopped ones were asked
    to, interrupted ones were killed; no run was started twice; no process, lock or open file of the home is left;
    nothing is left behind in runs that were never killed, and nothing in any run after a repair; memory, threads and
    open files of the servers are flat

Exit code 1 only when a promise is broken. Linux only: it looks into /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
from mcp import StdioServerParameters
from mcp.client import Client

from opd_core.control.processes import signal_process, try_lock
from opd_core.control.repair import Repair
from opd_core.paths import HomePaths
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import END_STATES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no installed package
from tests.tiny import write_tiny_model

SERVERS = 4
STEPS = 6
MAX_RESUMES = 2
PAUSE_SECONDS = (0.05, 0.4)
WARM_UP_CALLS = 20
EXIT_SECONDS = 30.0
ALLOWED_GROWTH_MB = 8.0


class Soak:
    """One soak: what was done to which run, and what the servers' processes looked like meanwhile."""

    def __init__(self, folder: Path, runs: int, seed: int) -> None:
        self.home, self.runs, self.random = HomePaths(folder / "home"), runs, random.Random(seed)
        self.home.prepare()
        write_tiny_model(self.home.models / "tiny")
        lines = [json.dumps({"prompt": f"Say number {number}."}) for number in range(30)]
        (self.home.home / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
        self.store = RunStore(self.home.database)
        self.started: list[str] = []
        self.starting = 0
        self.killed, self.asked_to_stop = Counter[str](), Counter[str]()
        self.resumed: Counter[str] = Counter()
        self.left_as_it_is: set[tuple[str, int]] = set()
        self.did: Counter[str] = Counter()
        self.samples: dict[int, list[tuple[float, int, int]]] = {}
        self.broken: list[str] = []

    def parameters(self) -> StdioServerParameters:
        """A server as a host would start it."""
        command = ["-P", "-m", "server.cli", "serve"]
        environment = {"OPD_HOME": str(self.home.home), "OPENBLAS_NUM_THREADS": "1"}
        return StdioServerParameters(command=sys.executable, args=command, env=environment)

    async def serve(self, number: int) -> None:
        """One server and its client, from its start until every run of all servers has ended."""
        async with Client(self.parameters()) as client:
            pid = await self._pid_of(client)
            while not self.is_over():
                await self._act(client)
                self.samples.setdefault(pid, []).append(process_figures(pid))
                await anyio.sleep(self.random.uniform(*PAUSE_SECONDS))

    def is_over(self) -> bool:
        """Whether every run was started and has ended, and none of them is to be resumed."""
        if len(self.started) < self.runs:
            return False
        return all(row.state in END_STATES and not self._is_to_resume(row) for row in self._rows())

    async def _act(self, client: Client) -> None:
        """Start something, or do something to a run."""
        if self.starting < self.runs and self.random.random() < 0.4:
            self.starting += 1
            await self._start(client, self.starting)
            return
        rows = self._rows()
        for row in rows:
            if self._is_to_resume(row):
                await self._resume(client, row)
                return
        live = [row for row in rows if row.pid is not None]
        if live and self.random.random() < 0.15:
            await self._meddle(client, self.random.choice(live))
            return
        active = [row for row in rows if row.state not in END_STATES]
        if not active:
            return
        row = self.random.choice(active)
        if self.random.random() < 0.05 and len(self.asked_to_stop) < self.runs // 3:
            await self._stop(client, row)
        else:
            await self._call(client, "get_status", run_id=row.run_id)

    async def _meddle(self, client: Client, row: RunRow) -> None:
        """Kill the worker at work, or stop it."""
        if self.random.random() < 0.7 and self.did["kill"] < self.runs // 2:
            if signal_process(row.pid, row.process_identity, signal.SIGKILL):
                self.killed[row.run_id] += 1
                self.did["kill"] += 1
        elif self.asked_to_stop.total() < self.runs:
            await self._stop(client, row)

    async def _stop(self, client: Client, row: RunRow) -> None:
        self.asked_to_stop[row.run_id] += 1
        await self._call(client, "stop_distillation", run_id=row.run_id, timeout_seconds=self.random.choice([0, 5]))

    async def _start(self, client: Client, number: int) -> None:
        request = {
            "base_model_path": "tiny",
            "validation_prompts_path": str(self.home.home / "prompts.jsonl"),
            "teacher_system_prompt": "Be brief.",
            "num_training_steps": STEPS,
            "batch_size": 2,
            "num_rollouts_per_prompt": 2,
            "rollout_max_tokens": 8,
            "eval_every_steps": 3,
            "checkpoint_every_steps": 2,
            "lora_rank": 2,
            "client_request_id": f"request {number}",
        }
        first = await self._call(client, "start_distillation", **request)
        if self.random.random() < 0.3:
            again = await self._call(client, "start_distillation", **request)
            if again["run_id"] != first["run_id"]:
                self.broken.append(f"{first['run_id']} was started twice")
        self.started.append(first["run_id"])

    async def _resume(self, client: Client, row: RunRow) -> None:
        if self.random.random() < 0.3:
            self.left_as_it_is.add((row.run_id, row.epoch))
            return
        self.resumed[row.run_id] += 1
        await self._call(client, "resume_distillation", run_id=row.run_id)

    def _is_to_resume(self, row: RunRow) -> bool:
        if row.state not in ("stopped", "interrupted", "failed") or (row.run_id, row.epoch) in self.left_as_it_is:
            return False
        return row.state != "failed" and self.resumed[row.run_id] < MAX_RESUMES

    def _rows(self) -> list[RunRow]:
        return self.store.list(limit=10_000)

    async def _call(self, client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await client.call_tool(tool, arguments)
        self.did[tool] += 1
        data = result.structured_content
        if result.is_error or data is None:
            text = " ".join(getattr(part, "text", "") for part in result.content)
            # two clients resumed the same run at the same time: one is refused
            if tool != "resume_distillation" or "Follow it with get_status" not in text:
                self.broken.append(f"{tool}: {text[:300]}")
            return {"run_id": ""}
        answer: dict[str, Any] = data
        return answer

    async def _pid_of(self, client: Client) -> int:
        """The server's process: the one of our children that no other client has taken."""
        await self._call(client, "list_runs", limit=1)
        for pid in sorted(children()):
            if pid not in self.samples and "server.cli" in command_line(pid):
                self.samples[pid] = []
                return pid
        raise SystemExit("a server is not among our children")


def children() -> list[int]:
    """The processes that this one started."""
    own = Path("/proc/self/task")
    return [int(pid) for task in own.iterdir() for pid in (task / "children").read_text().split()]


def command_line(pid: int) -> str:
    """A process's arguments; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def process_figures(pid: int) -> tuple[float, int, int]:
    """Resident memory in MB, threads and open files of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    open_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), open_files


def judge_runs(soak: Soak) -> None:
    """Whether the state of each run is true."""
    rows = soak.store.list(limit=10_000)
    if len(rows) != soak.runs or {row.run_id for row in rows} != set(soak.started):
        soak.broken.append(f"{len(rows)} runs are recorded where {soak.runs} were started")
    for row in rows:
        lines = soak.home.metrics(row.run_id, "train")
        steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()] if lines.exists() else []
        if row.state == "completed":
            is_true = steps == list(range(1, STEPS + 1)) and row.final_adapter_path is not None
        elif row.state == "stopped":
            is_true = soak.asked_to_stop[row.run_id] > 0 and row.end_reason == "by_user"
        else:
            is_true = row.state == "interrupted" and soak.killed[row.run_id] > 0
        if not is_true:
            soak.broken.append(f"{row.run_id} is {row.state} at step {row.step}, steps {steps}: {row.error_message}")


def judge_leftovers(soak: Soak) -> int:
    """What is left behind in the home: nothing but by a kill, and nothing at all after a repair."""
    found = Repair(soak.home).look()
    for finding in found:
        if not soak.killed[finding.run_id]:
            soak.broken.append(f"{finding.path} {finding.what}, though its run was never killed")
    Repair(soak.home).mend()
    soak.broken += [f"{finding.path} {finding.what} after a repair" for finding in Repair(soak.home).look()]
    return len(found)


def judge_processes(soak: Soak) -> None:
    """No process of the home, no open file of it and no held lock; a worker that let go may take a while to exit."""
    deadline = time.monotonic() + EXIT_SECONDS
    while (left := traces(soak.home.home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    soak.broken += left
    for path in soak.home.locks.iterdir():
        lock = try_lock(path)
        if lock is None:
            soak.broken.append(f"{path} is held")
        else:
            os.close(lock)


def traces(home: Path) -> list[str]:
    """The processes that were started for a home or have a file of it open; this one apart."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        if str(home) in command_line(pid):
            found.append(f"process {pid} is left: {command_line(pid)[:200]}")
        try:
            names = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        open_files = [name for name in names if name.startswith(str(home))]
        if open_files and pid != os.getpid():
            found.append(f"process {pid} has {open_files} open")
    return found


def growth(samples: list[tuple[float, int, int]]) -> tuple[float, int, int]:
    """By how much memory (MB), threads and open files grew from the first third after the warm-up to the last."""
    rest = samples[min(WARM_UP_CALLS, len(samples) // 3) :]
    third = max(1, len(rest) // 3)
    first, last = (list(zip(*part, strict=True)) for part in (rest[:third], rest[-third:]))
    changes = [statistics.median(after) - statistics.median(before) for before, after in zip(first, last, strict=True)]
    return changes[0], round(changes[1]), round(changes[2])


def judge_servers(soak: Soak) -> dict[str, float]:
    """Whether the servers' memory, threads and open files stay where they were."""
    figures = {"memory_mb": 0.0, "grew_mb": 0.0, "threads": 0.0, "open_files": 0.0}
    for samples in soak.samples.values():
        megabytes, threads, open_files = growth(samples)
        figures["memory_mb"] = max(figures["memory_mb"], samples[-1][0])
        figures["grew_mb"] = max(figures["grew_mb"], megabytes)
        figures["threads"] = max(figures["threads"], samples[-1][1])
        figures["open_files"] = max(figures["open_files"], samples[-1][2])
        if megabytes > ALLOWED_GROWTH_MB or threads > 2 or open_files > 2:
            soak.broken.append(f"a server grew by {megabytes:.1f} MB, {threads} threads and {open_files} open files")
    return figures


async def drive(soak: Soak, limit_seconds: float) -> None:
    """All servers at once, until every run has ended."""
    with anyio.move_on_after(limit_seconds) as scope:
        async with anyio.create_task_group() as group:
            for number in range(SERVERS):
                group.start_soon(soak.serve, number)
    if scope.cancelled_caught:
        soak.broken.append(f"not every run had ended after {limit_seconds:.0f} seconds")


def main() -> int:
    """Soak, print the table; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-seconds", type=float, help="give up after so long (default: 60 a run)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        soak = Soak(Path(folder), options.runs, options.seed)
        anyio.run(drive, soak, options.limit_seconds or 60.0 * options.runs)
        seconds = time.monotonic() - began
        judge_runs(soak)
        leftovers = judge_leftovers(soak)
        judge_processes(soak)
        states = Counter(row.state for row in soak.store.list(limit=10_000))
        workers = sum(row.epoch for row in soak.store.list(limit=10_000))
        table = {
            "runs": len(soak.started), "states": dict(states), "workers": workers, "kills": soak.did["kill"],
            "stops": soak.did["stop_distillation"], "resumes": soak.did["resume_distillation"],
            "left_by_kills": leftovers, "seconds": round(seconds, 1),
            "seconds_per_worker": round(seconds / max(1, workers), 2),
            **{name: round(value, 1) for name, value in judge_servers(soak).items()},
            "broken": soak.broken,
        }  # fmt: skip
        soak.store.close()
    for name, value in table.items():
        print(f"{name:<20} {value}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=2), encoding="utf-8")
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
