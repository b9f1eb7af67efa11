"""Kill training wherever it can be killed, and compare what survives with a twin that nobody killed.

Part 1 (`kill_points.py`): SIGKILL at every write-class system call of a checkpoint's publication.
Part 2: real runs of every method on the tiny model, through the real use cases, supervisor and worker processes; text
teachers are the scripted endpoint of the tests, over a socket. Each worker gets SIGKILL at a random moment, most of
them in training, some before. After each kill several servers look at once, the run is resumed, and killed again.
Promises:

    no checkpoint is torn; no run is lost: every one completes; never do two workers have one run; and what a killed
    run leaves behind (weights, optimizer states, rollouts, metrics apart from times, calls and costs) equals what its
    twin leaves, to the last bit

Exit code 1 only when a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from opd_core.checkpoint_files import list_checkpoints, verify_checkpoint
from opd_core.config import parse_config
from opd_core.control.processes import signal_process
from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.errors import CheckpointError
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import read_settings
from opd_core.state.jsonl import JsonlFile
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import END_STATES, LIVE_STATES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks and tests are no installed packages
from benchmarks.kill_points import How, can_trace, kill_at_every_call
from tests.endpoint import Endpoint, JsonObject, obliging, request_kind
from tests.opd_core.training.killable import alike, tensor_hashes
from tests.tiny import write_tiny_model

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (
    *(sys.executable, "-P", "-c"),
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from opd_core.worker import main; sys.exit(main())",
)
"""Workers of this very checkout."""
RUN_ID = "run"
STEPS = 24
SERVERS = 3
STUCK_SECONDS = 120.0
FOUND_DEAD_SECONDS = 5.0
TICK_SECONDS = 0.01
CHECK = {"kind": "regex", "pattern": "a", "must_match": "search"}
PIRATE = {"teacher_kind": "local", "teacher_system_prompt": "Answer as a pirate would, loudly."}
CLAUDE = {
    **{"teacher_kind": "claude", "acknowledge_teacher_terms": True, "max_budget_usd": 50.0, "check": CHECK},
    "confirmed": True,
    "teacher_rate_limit_tpm": 10_000_000,
}
METHODS: dict[str, dict[str, Any]] = {
    "kl": {**PIRATE, "method": "kl", "use_sft_mixup": True},
    "kl jsd": {**PIRATE, "method": "kl", "beta": 0.5, "kl_schedule": "cosine", "save_best_only": True},
    "contrast": {**CLAUDE, "method": "contrast", "sft_warmup_steps": 3, "dpo_round_steps": 5},
    "coach examples": {**CLAUDE, "method": "coach", "guidance_level": "examples", "teacher_refresh_steps": 7},
    "coach critique": {
        **CLAUDE, "method": "coach", "guidance_level": "critique", "teacher_ema": 0.1, "overlap_teacher": True,
    },
    "sft": {**CLAUDE, "method": "sft", "overlap_teacher": True},
    "auto": {**CLAUDE, "method": "auto", "guidance_level": "lesson"},
}  # fmt: skip


class Trial:
    """Counts and broken promises, of all lanes together."""

    def __init__(self, kills: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.wanted = kills
        self.draw = random.Random(seed)
        self._lock = threading.Lock()

    def count(self, name: str) -> None:
        """One more."""
        with self._lock:
            self.counts[name] += 1

    def kill(self, phase: str) -> None:
        """A worker was killed in this phase."""
        with self._lock:
            self.counts["kills"] += 1
            self.phases[phase] += 1

    def breach(self, promise: str) -> None:
        """A promise did not hold."""
        with self._lock:
            self.broken[promise] += 1

    def random(self) -> float:
        """From the trial's one stream."""
        with self._lock:
            return self.draw.random()

    @property
    def is_over(self) -> bool:
        """Whether there have been enough kills."""
        return self.counts["kills"] >= self.wanted


class House:
    """A home of its own with the tiny model, prompts and, for text teachers, the endpoint."""

    def __init__(self, folder: Path, model: Path, url: str, method: str) -> None:
        self.home = HomePaths(folder)
        self.home.prepare()
        shutil.copytree(model, self.home.models / "tiny")
        lines = [json.dumps({"prompt": f"Say number {number}."}) for number in range(16)]
        (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (folder / "settings.toml").write_text(f'teacher_base_url = "{url}"\n', encoding="utf-8")
        self.store = RunStore(self.home.database)
        self.runs = self.server()
        self.method = method

    def server(self) -> Runs:
        """A server's use cases; every server has its own."""
        supervisor = Supervisor(self.home, RunStore(self.home.database), COMMAND)
        return Runs(read_settings(home=self.home.home), Roots.of(self.home.home), supervisor=supervisor)

    def start(self) -> RunRow:
        """The one run of this home."""
        fields: dict[str, Any] = {
            "base_model_path": "tiny", "prompts_path": str(self.home.home / "prompts.jsonl"), "run_id": RUN_ID,
            "num_training_steps": STEPS, "batch_size": 2, "num_rollouts_per_prompt": 2, "rollout_max_tokens": 8,
            "eval_every_steps": 5, "checkpoint_every_steps": 2, "lora_rank": 2, "learning_rate": 5e-3,
        }  # fmt: skip
        return self.runs.start(parse_config(fields | METHODS[self.method]))

    def row(self) -> RunRow:
        """As the database has it; nothing is judged by looking."""
        return self.store.get(RUN_ID)

    def wait(self, is_there: Any, seconds: float = STUCK_SECONDS) -> bool:
        """Whether something came about in time."""
        deadline = time.monotonic() + seconds
        while not is_there():
            if time.monotonic() > deadline:
                return False
            time.sleep(TICK_SECONDS)
        return True

    def remains(self) -> dict[str, Any]:
        """What the run left, without what may differ between twins."""
        files = [self.home.metrics(RUN_ID, series) for series in ("train", "eval")]
        files += [self.home.rollouts(RUN_ID, split) for split in ("train", "val")]
        found: dict[str, Any] = {path.name: list(map(alike, JsonlFile(path).read())) for path in files}
        folder = self.home.checkpoints(RUN_ID)
        found["litter"] = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        return found | tensor_hashes(folder)


def workers_of(home: HomePaths) -> list[str]:
    """Living worker processes of a home, one line each.

    A worker leads its own process group. Whatever it starts looks like it for a moment, until its own program is
    loaded, and is in its group.
    """
    listing = subprocess.run(
        ["ps", "-axww", "-o", "pid=,pgid=,stat=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in listing.stdout.splitlines()]
    lines = [line for line in lines if "opd_core.worker" in line and f"--home {home.home} " in line]
    fields = [(line, line.split(None, 3)) for line in lines]
    return [line for line, (pid, group, stat, _) in fields if pid == group and not stat.startswith("Z")]


def live_and_die(trial: Trial, house: House, kills: int) -> None:
    """One run from its start to its end, killed so often on the way."""
    house.start()
    for _ in range(kills):
        was_early = trial.random() < 0.15
        if was_early:
            time.sleep(2.0 * trial.random())
        else:
            house.wait(lambda: house.row().state not in ("queued", "preparing"))
            time.sleep(0.8 * trial.random())
        row = house.row()
        if not signal_process(row.pid, row.process_identity, signal.SIGKILL):
            if row.state in END_STATES:
                break
            continue  # not adopted yet, or between its last write and its exit
        trial.kill(row.phase or "starting")
        after_a_kill(trial, house)
        if house.row().state in END_STATES and house.row().state != "interrupted":
            break
        house.runs.resume(RUN_ID)
    if not house.wait(lambda: house.row().state in END_STATES):
        trial.breach("lost: a run did not end")
    if house.row().state == "interrupted":
        house.runs.resume(RUN_ID)
        house.wait(lambda: house.row().state in END_STATES)


def after_a_kill(trial: Trial, house: House) -> None:
    """Several servers look at once; the run is interrupted, its checkpoints are whole, and nobody has it."""

    def is_found_dead(_: int) -> bool:
        server = house.server()
        return house.wait(lambda: server.status(RUN_ID).state not in LIVE_STATES, FOUND_DEAD_SECONDS)

    with ThreadPoolExecutor(SERVERS) as pool:
        if not all(pool.map(is_found_dead, range(SERVERS))):
            trial.breach(f"lost: a dead worker's run stays {house.row().state}")
    if workers_of(house.home):
        trial.breach("a worker lives on")
    try:
        for path in list_checkpoints(house.home.checkpoints(RUN_ID)):
            verify_checkpoint(path)
            trial.count("checkpoints verified")
    except CheckpointError as error:
        trial.breach(f"torn: {error}")


def watch(trial: Trial, house: House, stop: threading.Event) -> None:
    """Look all the time whether two processes have the run."""
    while not stop.wait(0.2):
        trial.count("looks for two workers")
        workers = workers_of(house.home)
        if len(workers) > 1:
            trial.breach("two workers have one run")
            print("\n".join(workers), file=sys.stderr)


def lane(trial: Trial, folder: Path, model: Path, url: str, twins: dict[str, dict[str, Any]], number: int) -> None:
    """Runs one after the other until there have been enough kills."""
    names = list(METHODS)
    for turn in range(number, 10_000, 2):
        if trial.is_over:
            return
        method = names[turn % len(names)]
        home, stop = folder / f"home_{turn}", threading.Event()
        house = House(home, model, url, method)
        watcher = threading.Thread(target=watch, args=(trial, house, stop))
        watcher.start()
        try:
            live_and_die(trial, house, min(12, max(1, trial.wanted - trial.counts["kills"])))
        finally:
            stop.set()
            watcher.join()
        row = house.row()
        trial.count("runs")
        if row.state != "completed":
            trial.breach(f"lost: {method} ended {row.state}: {row.message[:200]}")
        elif house.remains() != twins[method]:
            different = [name for name, value in house.remains().items() if value != twins[method].get(name)]
            trial.breach(f"{method} differs from its twin in {different[:4]}")
        else:
            trial.count("survivors equal to their twin")
        if not trial.broken:
            shutil.rmtree(home)


def kill_training(trial: Trial, folder: Path, lanes: int, methods: int) -> None:
    """Part 2."""
    for name in list(METHODS)[methods:]:
        del METHODS[name]
    model = write_tiny_model(folder / "tiny", gain=2.0)
    with Endpoint(answer) as endpoint:
        twins = {}
        for method in METHODS:
            house = House(folder / f"twin {method}".replace(" ", "_"), model, endpoint.url, method)
            house.start()
            house.wait(lambda house=house: house.row().state in END_STATES)
            if house.row().state != "completed":
                raise RuntimeError(f"the twin of {method} ended {house.row().state}: {house.row().message}")
            twins[method] = house.remains()
        with ThreadPoolExecutor(lanes) as pool:
            jobs = [pool.submit(lane, trial, folder, model, endpoint.url, twins, number) for number in range(lanes)]
            for job in jobs:
                job.result()


def answer(params: JsonObject) -> JsonObject:
    """References short enough for the tiny student."""
    return {"reference": "Yea."} if request_kind(params) == "reference" else obliging(params)


def main() -> int:
    """Run the trial; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Kill training everywhere and compare with a run nobody killed.")
    parser.add_argument("--kills", type=int, default=300, help="SIGKILLs in training at least (300)")
    parser.add_argument("--every", type=int, default=1, help="kill a publication at every so many calls (1)")
    parser.add_argument("--methods", type=int, default=len(METHODS), help="only the first so many methods")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--quick", action="store_true", help="few kills, to see that it works")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.every, options.methods, options.lanes = 3, 20, 1, 1
    os.environ["ANTHROPIC_API_KEY"] = "sk-benchmark"
    trial, started = Trial(options.kills, options.seed), time.perf_counter()
    points: Counter[str] = Counter()
    how: How = "strace" if can_trace() else "audit hook"
    kill_at_every_call(how, options.every, trial.breach, lambda name: points.update([name]))
    folder = Path(tempfile.mkdtemp(prefix="kill_loop_"))
    try:
        kill_training(trial, folder, options.lanes, options.methods)
    finally:
        if trial.broken:
            print(f"the homes are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    figures = {
        "seconds": round(time.perf_counter() - started, 1),
        "publication_kills": sum(points.values()),
        "killed_by": how,
        "publication_kills_by_call": dict(points),
        **trial.counts,
        "kills_by_phase": dict(trial.phases),
        "methods": list(METHODS),
        "seed": options.seed,
        "broken_promises": dict(trial.broken),
    }
    for name, value in figures.items():
        if isinstance(value, dict):
            value = "; ".join(f"{part}: {count}" for part, count in value.items()) or "none"
        print(f"{name.replace('_', ' '):<30}{', '.join(value) if isinstance(value, list) else value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if trial.broken else 0


if __name__ == "__main__":
    sys.exit(main())
