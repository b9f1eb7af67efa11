"""What a worker's job reports, written down: JSONL files, the run's row and series, events. A `RunObserver`.

The files are written first, the row second: the row never tells of a line that is not in the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from opd_core.errors import StaleWorkerError, StateError, StoreError
from opd_core.paths import HomePaths, iso_utc
from opd_core.seams import REAL, Seams
from opd_core.state.database import SqlValue
from opd_core.state.jsonl import JsonlFile, dump_line
from opd_core.state.metrics import Series
from opd_core.state.rows import RunRow
from opd_core.state.run_log import RunLog
from opd_core.state.store import RunStore
from opd_core.types import Rollout, RunState, clean_text

HEARTBEAT_SECONDS = 1.0
STEP_PHASE_SECONDS = 0.25
STOP_LOOK_SECONDS = 0.5
WRITE_ATTEMPTS = 6
STEP_PHASES = frozenset({"rollout", "teacher", "update"})


class RunRecorder:
    """Records one epoch of one run; every write raises StaleWorkerError once the epoch has passed.

    Args:
        stop_signalled: whether this process was told to stop (its SIGTERM flag).
    """

    def __init__(
        self,
        store: RunStore,
        home: HomePaths,
        row: RunRow,
        stop_signalled: Callable[[], bool],
        seams: Seams = REAL,
    ) -> None:
        self._store, self._run_id, self._epoch = store, row.run_id, row.epoch
        self._stop_signalled, self._seams = stop_signalled, seams
        self._clock = clock = seams.monotonic
        self._files, self._log = _run_files(home, row), RunLog(home.log(row.run_id))
        self._state_seen, self._stop_seen = row.state, row.stop_requested
        self._started = self._last_write = self._last_phase_write = self._last_look = clock()
        self._first_step_at: float | None = None
        self._phase = ""
        self._steps_done = 0

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        """Show what is being done. Long phases are written at once, those of a step at most four times a second."""
        now = self._clock()
        if name == "rollout" and self._first_step_at is None:
            self._first_step_at = now
        columns: dict[str, SqlValue] = {"phase": name, "phase_detail": detail, "phase_fraction": fraction}
        if self._state_seen == "preparing" and name != "preparing":
            self._begin()
        elif name == self._phase:
            if now - self._last_write < HEARTBEAT_SECONDS:
                return
        elif name in STEP_PHASES and now - self._last_phase_write < STEP_PHASE_SECONDS:
            return
        self._write(lambda: self._store.heartbeat(self._run_id, self._epoch, **columns))
        self._phase, self._last_phase_write = name, now

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None:
        """Append the rollouts of a step or an evaluation to their file."""
        self._files[f"rollouts/{split}"].append(rollout.as_record() for rollout in rollouts)

    def train_metrics(self, line: dict[str, object]) -> None:
        """Record one training step: the file, then series, row and heartbeat in one transaction."""
        self._files["metrics/train"].append([line])
        self._steps_done += 1
        elapsed = self._clock() - (self._first_step_at or self._started)
        columns: dict[str, SqlValue] = {"step": _step(line), "latest_metrics": dump_line(line)}
        columns["steps_per_second"] = self._steps_done / elapsed if elapsed > 0 else None
        self._write(lambda: self._store.append_metrics(self._run_id, self._epoch, "train", line, **columns))

    def eval_metrics(self, line: dict[str, object]) -> None:
        """Record one held-out evaluation; the first one of a run is its baseline."""
        self._files["metrics/eval"].append([line])
        text, columns = dump_line(line), dict[str, SqlValue]()
        columns["latest_eval"] = text
        if line["step"] == 0:
            columns["baseline_eval"] = text
        if line.get("is_best"):
            columns |= {"best_eval": text, "best_step": _step(line)}
        self._write(lambda: self._store.append_metrics(self._run_id, self._epoch, "eval", line, **columns))

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None:
        """Note a checkpoint that stands on the disk."""
        self._write(lambda: self._store.heartbeat(self._run_id, self._epoch, checkpoint_path=str(path)))
        best = " (best so far)" if is_best else ""
        self._store.add_event(self._run_id, "checkpoint", f"Checkpoint of step {step}{best}: {path}")

    def waiting(self, reason: str, wake_in_seconds: float) -> None:
        """Show that the run waits for something outside, and until when; without a reason: that it goes on."""
        wake_at = self._seams.now() + timedelta(seconds=wake_in_seconds)
        columns: dict[str, SqlValue] = {"waiting_reason": clean_text(reason), "wake_at": iso_utc(wake_at)}
        if not reason:
            columns = {"waiting_reason": None, "wake_at": None}
        to: RunState = "waiting" if reason else "running"
        if self._state_seen == to or self._state_seen == "stopping":
            self._write(lambda: self._store.heartbeat(self._run_id, self._epoch, **columns))
            return
        try:
            message = columns["waiting_reason"] or ""
            self._write(
                lambda: self._store.transition(self._run_id, to, epoch=self._epoch, message=str(message), **columns)
            )
        except StateError:  # a stop was asked for in the meantime
            self._write(lambda: self._store.get(self._run_id))

    def log(self, message: str) -> None:
        """Write a line to the run's log (the worker's own output)."""
        self._log.write_line(f"{iso_utc(self._seams.now())} {message}")

    def warn(self, message: str) -> None:
        """Say something that a person should see, in the log and among the run's events."""
        self.log(f"warning: {message}")
        self._store.add_event(self._run_id, "warning", message)

    def should_stop(self) -> bool:
        """Whether this process was signalled or the row asks for a stop; the row is read twice a second at most."""
        if self._stop_signalled() or self._stop_seen:
            return True
        now = self._clock()
        if now - self._last_look >= STOP_LOOK_SECONDS:
            self._last_look = now
            row = self._store.get(self._run_id)
            if row.epoch != self._epoch:
                raise StaleWorkerError(f"Run {self._run_id} has another worker now (epoch {row.epoch}).")
            self._stop_seen = row.stop_requested
        return self._stop_seen

    def positions(self) -> dict[str, int]:
        """The length in bytes of each append-only file, flushed to the disk: a checkpoint stands on them."""
        return {name: file.synced_size() for name, file in self._files.items()}

    def cut_back(self, positions: dict[str, int]) -> None:
        """Return files and series to a checkpoint's positions; a file without one goes back to empty."""
        for name, file in self._files.items():
            missing = file.cut(positions.get(name, 0))
            if missing:
                self.warn(
                    f"{file.path} has lost {missing} bytes since the checkpoint that the run goes on from: some of its "
                    "earlier lines are missing. The training itself is not affected."
                )
        last_train = _last(deque(self._files["metrics/train"].read(), maxlen=1))
        evals = list(self._files["metrics/eval"].read())
        last_eval = _last(evals)
        best = _last([line for line in evals if line.get("is_best")])
        self._cut_series(
            "train",
            last_train,
            step=0 if last_train is None else _step(last_train),
            latest_metrics=_text(last_train),
            **({} if positions else {"checkpoint_path": None}),
        )
        self._cut_series(
            "eval",
            last_eval,
            latest_eval=_text(last_eval),
            baseline_eval=_text(next((line for line in evals if line.get("step") == 0), None)),
            best_eval=_text(best),
            best_step=None if best is None else _step(best),
        )

    def _cut_series(self, series: Series, last: Mapping[str, Any] | None, **columns: SqlValue) -> None:
        self._write(lambda: self._store.cut_metrics(self._run_id, self._epoch, series, last, **columns))

    def _begin(self) -> None:
        """preparing to running; a stop request that came first keeps the run `stopping`."""
        try:
            self._write(lambda: self._store.transition(self._run_id, "running", epoch=self._epoch))
        except StateError:
            self._write(lambda: self._store.get(self._run_id))

    def _write(self, call: Callable[[], RunRow]) -> None:
        """Do it, and again while the database is busy (each try waits its ten seconds): a run outlives a long lock."""
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            try:
                row = call()
                break
            except StoreError:
                if attempt == WRITE_ATTEMPTS:
                    raise
        self._state_seen = row.state
        self._stop_seen = self._stop_seen or row.stop_requested
        self._last_write = self._last_look = self._clock()


def _run_files(home: HomePaths, row: RunRow) -> dict[str, JsonlFile]:
    """The append-only files of a run by the names used in checkpoints; rollouts may lie in folders of the config."""
    files = {f"metrics/{series}": JsonlFile(home.metrics(row.run_id, series)) for series in ("train", "eval")}
    rollouts = {split: JsonlFile(home.rollouts(row.run_id, split, row.config)) for split in ("train", "val")}
    return files | {f"rollouts/{split}": file for split, file in rollouts.items()}


def _step(line: Mapping[str, Any]) -> int:
    return int(line["step"])


def _last(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return lines[-1] if lines else None


def _text(line: Mapping[str, Any] | None) -> str | None:
    return None if line is None else dump_line(line)
