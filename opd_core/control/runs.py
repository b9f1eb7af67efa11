"""The use cases of runs, called alike by tools, routes and the command line. Each call stands alone.

Every question first makes the answer true: runs whose worker died are recorded as such, and the next queued job is
started when none runs.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.config_io import to_yaml
from opd_core.control.confirming import require_judge, require_raise, require_start
from opd_core.control.job_results import read_result
from opd_core.control.logs import log_tail
from opd_core.control.preflight.checking import CheckComparison, CheckRun, Preflight, check, check_comparison
from opd_core.control.preflight.paid import month_ledger
from opd_core.control.queueing import NewJobs, refuse_other_arguments, requeue
from opd_core.control.resuming import (
    changed_config,
    prepare_checkpoints,
    prompts_warnings,
    refuse_changes_of_a_comparison,
    why_not_resumable,
)
from opd_core.control.run_money import raise_budget, with_money
from opd_core.control.supervisor import Supervisor
from opd_core.errors import ConfigError, StateError
from opd_core.money.ledger import Ledger
from opd_core.paths import write_whole
from opd_core.roots import Roots
from opd_core.seams import REAL, Seams
from opd_core.settings import Settings
from opd_core.state.events import Event
from opd_core.state.metrics import MAX_POINTS, Series
from opd_core.state.rows import Line, RunRow
from opd_core.state.store import RunStore
from opd_core.types import RESUMABLE_STATES, RunState, clean_text


class Runs:
    """The runs of one home. Makes nothing until a run is started.

    Args:
        settings: what a person set for this install and no call can raise; the home is among it.
        roots: the folders that may be read and written.
    """

    def __init__(
        self,
        settings: Settings,
        roots: Roots,
        *,
        store: RunStore | None = None,
        ledger: Ledger | None = None,
        supervisor: Supervisor | None = None,
        seams: Seams = REAL,
        config_text: Callable[[RunConfig], str] = to_yaml,
        preflight: CheckRun = check,
        comparison_preflight: CheckComparison = check_comparison,
    ) -> None:
        self._home, self._settings, self._roots = settings.home, settings, roots
        self._preflight, self._comparison_preflight = preflight, comparison_preflight
        self._store = store or RunStore(self._home.database)
        self._ledger = ledger or month_ledger(settings)
        self._config_text = config_text
        self._new_jobs = NewJobs(self._home, self._store, seams, config_text)
        self._supervisor = supervisor or Supervisor(self._home, self._store)

    def start(self, config: RunConfig) -> RunRow:
        """Check, record and start (or queue) a run; the same client_request_id gives the same run again.

        Raises:
            ConfirmationNeededError: it may spend more than is spent without asking (`confirming.py`).
            OPDError: refused; no row, file or lock is left behind.
        """
        return self._start(config, "distillation")

    def start_probe(self, config: RunConfig) -> RunRow:
        """Queue a probe by itself: which guidance makes this student better; the same configuration as for a run.

        Raises:
            OPDError: refused, as by `start`; also when the teacher is one that writes no text.
        """
        if config.teacher_kind != "claude":
            raise ConfigError(
                "A probe measures what a text teacher's guidance does, so it needs teacher_kind 'claude'. With a local "
                "teacher there is nothing to probe: start_distillation learns from its probabilities directly.",
                field="teacher_kind",
            )
        return self._start(config, "probe")

    def _start(self, config: RunConfig, kind: Literal["distillation", "probe"]) -> RunRow:
        repeated = self._store.find_request(config.client_request_id)
        if repeated is not None:
            refuse_other_arguments(config, repeated)
            return self.status(repeated.run_id)
        found = self._check(config)
        require_start(found, kind, self._settings)
        self._home.prepare()
        row = self._new_jobs.create_run(found.config, kind, found.warnings)
        self._supervisor.start_next_queued()
        return replace(self._view(self._store.get(row.run_id)), message=" ".join(found.warnings))

    def start_comparison(self, spec: ComparisonSpec, confirmed: bool = False) -> RunRow:
        """Queue a comparison of adapters on the held-out prompts of a run; `message` holds the warnings, if any.

        Raises:
            ConfirmationNeededError: its judge may spend more than is spent without asking.
            RunNotFoundError: no such run.
            PathError: an adapter lies outside the allowed folders or does not exist.
        """
        source = self._store.resolve(spec.run_id)
        if source.kind != "distillation":
            raise StateError(f"{source.run_id} is a {source.kind}; name a distillation run to compare adapters of.")
        config = parse_config(source.config)
        checked = self._comparison_preflight(spec, config, self._roots, self._settings)
        require_judge(checked.spec, confirmed)
        edited = prompts_warnings(self._home.checkpoint_folder(source.run_id, config.checkpoint_dir), config)
        warnings = [*checked.warnings, *edited]
        row = self._new_jobs.create_comparison(checked.spec, source.run_id, warnings)
        return replace(self.status(row.run_id), message=" ".join(warnings))

    def status(self, run_id: str | None = None) -> RunRow:
        """The run as it is now; None or "latest": the current distillation, else the latest.

        Raises:
            RunNotFoundError: no such run.
        """
        self._supervisor.reconcile()
        self._supervisor.start_next_queued()
        return self._view(self._store.resolve(run_id))

    def list(
        self,
        session_id: str | None = None,
        state: RunState | None = None,
        limit: int = 10,
        cursor: str | None = None,
    ) -> tuple[builtins.list[RunRow], str | None]:
        """The newest runs first, and the cursor of the next page (None on the last one)."""
        if cursor is not None and not cursor.isdecimal():
            problem = f"cursor {clean_text(cursor, 40)!r} is not one; give the next_cursor of the answer before."
            raise ConfigError(problem, field="cursor")
        self._supervisor.reconcile()
        before = None if cursor is None else min(int(cursor), 2**62)
        rows = self._store.list(session_id=session_id, state=state, limit=limit + 1, before_number=before)
        next_cursor = str(rows[limit - 1].number) if len(rows) > limit else None
        return [with_money(row, self._ledger) for row in rows[:limit]], next_cursor

    def metrics(
        self,
        run_id: str | None = None,
        series: Series = "train",
        since_step: int | None = None,
        points: int = MAX_POINTS,
    ) -> builtins.list[Line]:
        """Up to `points` metric lines after `since_step`, evenly spread; the last one is always there."""
        return self._store.metrics(self._store.resolve(run_id).run_id, series, since_step, points)

    def events(self, run_id: str | None = None, limit: int = 100) -> builtins.list[Event]:
        """The newest `limit` events (of one run, or all) other than metrics, oldest first."""
        return self._store.events(run_id, limit)

    def stop(self, run_id: str | None = None, timeout_seconds: float | None = None, force: bool = False) -> RunRow:
        """Ask a run to stop and wait; `stopping` in the answer means that it is not there yet.

        With `force` a worker that has not stopped in time is killed. A run that has ended is returned as it is.
        """
        self._supervisor.reconcile()
        row = self._store.resolve(run_id)
        return self._view(self._supervisor.stop(row.run_id, timeout_seconds, force))

    def resume(
        self,
        run_id: str | None = None,
        num_training_steps: int | None = None,
        max_budget_usd: float | None = None,
        confirmed: bool = False,
        from_step: int | None = None,
        accept_changes: bool = False,
    ) -> RunRow:
        """Queue a stopped, failed or interrupted run again; it goes on from its last checkpoint.

        A larger budget is within the person's ceilings, of a run and of the month, or refused.

        Args:
            from_step: go on from this checkpoint; the later ones are given up.
            accept_changes: go on with prompts and models as they are now, though they were changed meanwhile.

        Raises:
            StateError: it is in another state.
            ConfigError: fewer steps than before, or a change of a comparison.
            ConfirmationNeededError: a larger budget without `confirmed`.
            CheckpointError: the checkpoint is damaged, or prompts or models were changed.
        """
        self._supervisor.reconcile()
        row = self._store.resolve(run_id)
        if row.state not in RESUMABLE_STATES:
            raise StateError(why_not_resumable(row))
        if row.kind == "comparison":
            refuse_changes_of_a_comparison(row, num_training_steps, max_budget_usd, from_step)
            requeue(self._store, row, config=row.config, total_steps=0)
            return self.status(row.run_id)
        config = self._check(changed_config(row, num_training_steps, max_budget_usd)).config
        require_raise(row, config.max_budget_usd, confirmed)
        folder = self._home.checkpoint_folder(row.run_id, config.checkpoint_dir)
        make_ready = prepare_checkpoints(folder, config, from_step, accept_changes)
        self._home.prepare()

        def before_commit() -> None:
            write_whole(self._home.config(row.run_id), self._config_text(config))
            make_ready()

        if confirmed:
            self._ledger.rebuild_check()  # before anything is changed: `raise_budget` would refuse it too
        requeue(
            self._store,
            row,
            config=config.model_dump(mode="json"),
            total_steps=config.num_training_steps if row.kind == "distillation" else 0,
            before_commit=before_commit,
            **({} if from_step is None else {"checkpoint_path": str(folder / f"step_{from_step:06d}")}),
        )
        if confirmed:  # only now: whom another call was quicker than has raised nothing
            raise_budget(row.run_id, config.max_budget_usd, self._ledger)
        return self.status(row.run_id)

    def comparison_result(self, job_id: str) -> dict[str, Any]:
        """What a completed comparison found.

        Raises:
            StateError: it is not a comparison, or has not completed.
        """
        return read_result(self.status(job_id), "comparison")

    def probe_result(self, job_id: str) -> dict[str, Any]:
        """What a completed probe found: `training.probe.ProbeReport.as_record` with `job_id` and `teacher`.

        Raises:
            StateError: it is not a probe, or has not completed.
        """
        return read_result(self.status(job_id), "probe")

    def _check(self, config: RunConfig) -> Preflight:
        return self._preflight(config, self._roots, self._settings)

    def _view(self, row: RunRow) -> RunRow:
        row = with_money(row, self._ledger)
        if row.state not in ("failed", "interrupted"):
            return row
        return replace(row, last_log_lines=log_tail(self._home.log(row.run_id)))
