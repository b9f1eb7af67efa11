"""What a run costs beside its work: the overhead of a step, and what a long history adds to a call.

Two parts:
  steps    the embedded demo's own run, started and followed over MCP as `opd demo` does it, but without evaluations
           and checkpoints between its steps. Overhead is the time that is neither rollout, teacher nor update: what
           passed between the moments at which two steps were recorded, less those three. So files, SQLite, metrics,
           heartbeat and JSON are in it; the worker's looks for a stop request, which fall into the rollout, are added.
           Beside it stands the run's own account, `other_seconds`. The first step warms up and does not count.
  history  two homes, written by the worker's recorder: one run of 100 steps, one of 100,000, both with an evaluation
           and a checkpoint every 100. Each has its own `opd serve`; get_status and get_metrics are called on both in
           turns, in several rounds with new servers.

Promises: overhead is at most 2 % of a step, in the median and over all; the long history costs neither call more than
1.2 times the short one. Exit code 1 only when one is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
from mcp.client import Client
from rich.console import Console

from opd_core.config import parse_config
from opd_core.paths import HomePaths
from opd_core.state.database import Database
from opd_core.state.events import read_feed
from opd_core.state.metrics import METRICS
from opd_core.state.recorder import STOP_LOOK_SECONDS, RunRecorder
from opd_core.state.store import RunStore
from opd_core.training.step import step_line
from opd_core.training.updates import StepResult
from opd_core.types import END_STATES
from server.commands.demo import Demo
from server.commands.doctor import server_parameters
from server.commands.terminal import RunView
from server.schemas.runs import EvalEntry
from server.settings import read_settings

MOST_PERCENT = 2.0
MOST_RATIO = 1.2
PHASES = ("rollout_seconds", "teacher_seconds", "update_seconds")
TOOLS = ("get_status", "get_metrics")
EVERY_STEPS = 100
ROUNDS = 4
WARM_UP_CALLS = 10
COUNTS = ("calls", "rollouts", "tokens", "prompts")
RUN_ID = "opd_recorded"


def measure_steps(home: Path, steps: int) -> dict[str, Any]:
    """A run of the demo's settings; figures of all steps but the first."""
    os.environ["OPD_HOME"] = str(home)
    demo = Demo(RunView(Console(file=StringIO())), read_settings())
    demo.prepare()
    never = {"eval_every_steps": 10 * steps, "checkpoint_every_steps": 10 * steps}
    run_id = anyio.run(run_over_mcp, demo, {**demo.configuration(), "num_training_steps": steps, **never})
    store = RunStore(demo.home.database)
    events = read_feed(Database(demo.home.database), run_id, 0, sys.maxsize, sys.maxsize)
    recorded = [event for event in events if event.kind == "metrics" and (event.figures or {})["series"] == "train"]
    moments = [datetime.fromisoformat(event.at).timestamp() for event in recorded]
    found = overhead(store.metrics(run_id), moments)
    looks_percent = 100 * median_seconds(lambda: store.get(run_id)) / STOP_LOOK_SECONDS
    return {**found, "looks_percent": looks_percent, "total_percent": found["clock_percent"] + looks_percent}


async def run_over_mcp(demo: Demo, configuration: Mapping[str, Any]) -> str:
    """Start a run as an assistant does and wait for its end; returns its id."""
    async with Client(server_parameters(demo.settings, dict(os.environ))) as client:
        answer = await client.call_tool("start_distillation", dict(configuration))
        while not answer.is_error and answer.structured_content is not None:
            run_id, state = str(answer.structured_content["run_id"]), answer.structured_content.get("state")
            if state == "completed":
                return run_id
            if state in END_STATES:
                break
            answer = await client.call_tool("wait_for_run", {"run_id": run_id, "timeout_seconds": 10})
    raise SystemExit(f"The run did not complete: {answer.content}")


def overhead(lines: Sequence[Mapping[str, Any]], moments: Sequence[float]) -> dict[str, Any]:
    """Overhead of the steps after the first, by the run's own account and by the clock, in percent of the time.

    Args:
        lines: the metrics line of each step.
        moments: when each was recorded, in seconds; nothing but steps may lie between them.
    """
    assert len(lines) == len(moments) > 1
    counted = lines[1:]
    phases = [sum(line[phase] for phase in PHASES) for line in counted]
    others = [line["other_seconds"] for line in counted]
    percents = [100 * other / (phase + other) for phase, other in zip(phases, others, strict=True)]
    passed = moments[-1] - moments[0]
    return {
        "steps": len(counted),
        "phase_seconds": {phase: statistics.median(line[phase] for line in counted) for phase in PHASES},
        "overhead_seconds": statistics.median(others),
        "median_percent": statistics.median(percents),
        "accounted_percent": 100 * sum(others) / passed,
        "clock_percent": 100 * (passed - sum(phases)) / passed,
        "all_percents": percents,
    }


def median_seconds(act: Callable[[], object], times: int = 200) -> float:
    """Of one of many calls."""
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def record(home: HomePaths, steps: int) -> None:
    """A completed run of so many steps, as its worker would have left it; the figures in its lines are random."""
    home.prepare()
    database = Database(home.database)
    store, numbers = RunStore(database), random.Random(steps)
    config = parse_config({"base_model_path": "none", "prompts_path": "none.txt", "run_id": RUN_ID})
    store.create(RUN_ID, "distillation", config.model_dump(mode="json"), total_steps=steps)
    database.read("PRAGMA synchronous=OFF")  # the same rows, without waiting for the disk 100,000 times
    epoch = store.claim(RUN_ID)
    recorder = RunRecorder(store, home, store.get(RUN_ID), lambda: False)
    train_names = [*step_line(1, [], StepResult(), config, 1.0), "other_seconds", "peak_memory_gb"]

    def line(step: int, names: Iterable[str]) -> dict[str, object]:
        whole = {name for name in names if METRICS[name].unit in COUNTS}
        figures = {name: numbers.randrange(100) if name in whole else numbers.random() for name in names}
        return {**figures, "step": step, "total_steps": steps, "update_skipped": False, "is_best": step == 0}

    recorder.phase("rollout", "step 1")
    for step in range(steps + 1):
        if step:
            recorder.train_metrics(line(step, train_names))
        if step % EVERY_STEPS == 0:
            recorder.eval_metrics(line(step, EvalEntry.model_fields))
            recorder.checkpoint(step, home.checkpoints(RUN_ID) / f"step_{step:06d}", is_best=step == 0)
    store.finish(RUN_ID, "completed", "finished", epoch=epoch, message=f"All {steps} steps are done.")
    store.close()


def measure_history(folder: Path, short: int, long: int, calls: int) -> dict[str, Any]:
    """Median milliseconds of each tool on both histories."""
    homes = {steps: HomePaths(folder / f"home-{steps}") for steps in (short, long)}
    for steps, home in homes.items():
        record(home, steps)
    durations: dict[str, dict[int, list[float]]] = {tool: {short: [], long: []} for tool in TOOLS}
    for number in range(ROUNDS):  # whoever comes second in a turn may find another machine
        ordered = dict(reversed(homes.items()) if number % 2 else homes.items())
        anyio.run(call_in_turns, ordered, calls // ROUNDS, durations)
    found: dict[str, Any] = {"short_steps": short, "long_steps": long, "calls": calls // ROUNDS * ROUNDS}
    for tool, taken in durations.items():
        short_ms, long_ms = (1000 * statistics.median(taken[steps]) for steps in (short, long))
        found[tool] = {"short_ms": short_ms, "long_ms": long_ms, "ratio": long_ms / short_ms}
    return found


async def call_in_turns(
    homes: Mapping[int, HomePaths], calls: int, durations: Mapping[str, Mapping[int, list[float]]]
) -> None:
    """A server for each home, and so many calls of each tool; their seconds are added to `durations`."""
    async with AsyncExitStack() as servers:
        clients = {}
        for steps, home in homes.items():
            parameters = server_parameters(read_settings(home=home.home), {})
            clients[steps] = await servers.enter_async_context(Client(parameters))
        for tool, taken in durations.items():
            for number in range(WARM_UP_CALLS + calls):
                for steps, client in clients.items():
                    started = time.perf_counter()
                    answer = await client.call_tool(tool, {"run_id": RUN_ID})
                    seconds = time.perf_counter() - started
                    if answer.is_error:
                        raise SystemExit(f"{tool} failed: {answer.content}")
                    if number >= WARM_UP_CALLS:
                        taken[steps].append(seconds)


def show(found: Mapping[str, Any]) -> None:
    """The tables."""
    if steps := found.get("steps"):
        phases = ", ".join(f"{name.partition('_')[0]} {value:.2f} s" for name, value in steps["phase_seconds"].items())
        print(f"a step: {phases}, overhead {1000 * steps['overhead_seconds']:.1f} ms")
        print(f"{'overhead of ' + str(steps['steps']) + ' steps, the first left out':44}{'percent':>10}")
        for told, name in (
            ("own account, median", "median_percent"),
            ("own account, all steps", "accounted_percent"),
            ("by the clock, all steps", "clock_percent"),
            ("looks for a stop request, at most", "looks_percent"),
            ("by the clock, with the looks", "total_percent"),
        ):
            print(f"  {told:42}{steps[name]:10.3f}")
    if history := found.get("history"):
        print(f"{'median of ' + str(history['calls']) + ' calls, ms; steps:':34}", end="")
        print(f"{history['short_steps']:>10,}{history['long_steps']:>10,}{'ratio':>8}")
        for tool in TOOLS:
            figures = history[tool]
            print(f"  {tool:32}{figures['short_ms']:10.2f}{figures['long_ms']:10.2f}{figures['ratio']:8.3f}")


def broken_promises(found: Mapping[str, Any]) -> list[str]:
    """What was promised and did not hold."""
    percents = [found["steps"][name] for name in ("median_percent", "total_percent")] if "steps" in found else []
    ratios = {tool: found["history"][tool]["ratio"] for tool in TOOLS} if "history" in found else {}
    broken = [f"overhead is {percent:.2f} % of a step" for percent in percents if percent > MOST_PERCENT]
    return broken + [f"{tool} costs {ratio:.2f} times as much" for tool, ratio in ratios.items() if ratio > MOST_RATIO]


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of the run, the first included (default: 12)")
    parser.add_argument("--calls", type=int, default=200, help="calls of each tool on each history (default: 200)")
    parser.add_argument("--only", choices=("steps", "history"), help="one part")
    parser.add_argument("--quick", action="store_true", help="all in small: a test of the script, no measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="opd_overhead_") as scratch:
        if options.only != "history":
            found["steps"] = measure_steps(Path(scratch) / "demo", 3 if options.quick else options.steps)
        if options.only != "steps":
            sizes = (100, 2000, 20) if options.quick else (100, 100_000, options.calls)
            found["history"] = measure_history(Path(scratch), *sizes)
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.quick:
        return 0
    broken = broken_promises(found)
    print("All promises are kept." if not broken else f"BROKEN: {'; '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
