"""The use cases of runs, called alike by tools, routes and the command line. Each call stands alone.

Every question first makes the answer true: runs whose worker died are recorded as such, and the next queued job is
started when none runs.
"""

from __future__ import annotations

import builtins
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.config_io import to_yaml
from opd_core.control.confirming import require_judge, require_raise, require_start
from opd_core.control.logs import log_tail
from opd_core.control.preflight import CheckedComparison, Preflight, check, check_comparison
from opd_core.control.preflight_paid import month_ledger
from opd_core.control.resuming import (
    changed_config,
    prepare_checkpoints,
    prompts_warnings,
    refuse_changes_of_a_comparison,
    why_not_resumable,
)
from opd_core.control.supervisor import Supervisor
from opd_core.errors import ConfigError, HomeError, StateError
from opd_core.money.admission import FROZEN_MARK
from opd_core.money.amounts import pico_from_usd, usd_from_pico
from opd_core.money.ledger import Ledger
from opd_core.paths import check_run_id, new_run_id, write_whole
from opd_core.roots import Roots
from opd_core.seams import REAL, Seams
from opd_core.settings import Settings
from opd_core.state.events import Event
from opd_core.state.metrics import MAX_POINTS, Series
from opd_core.state.rows import Line, RunRow
from opd_core.state.store import RunStore
from opd_core.types import RESUMABLE_STATES, JobKind, RunState, clean_text

CheckRun = Callable[[RunConfig, Roots, Settings], Preflight]
CheckComparison = Callable[[ComparisonSpec, RunConfig, Roots, Settings], CheckedComparison]


RESOLVED_FIELDS = frozenset(
    {
        *("base_model_path", "student_adapter_path", "teacher_model_id", "prompts_path", "validation_prompts_path"),
        *("rollout_output_dir", "val_rollout_dir", "checkpoint_dir", "method", "run_id", "confirmed"),
    }
)
"""Written into a run otherwise than the caller gave them."""


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
        self._seams, self._config_text = seams, config_text
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
            self._refuse_other_arguments(config, repeated)
            return self.status(repeated.run_id)
        found = self._check(config)
        require_start(found, kind, self._settings)
        self._home.prepare()

        def create(run_id: str) -> RunRow:
            resolved = found.config.model_copy(update={"run_id": run_id})
            with self._config_file(resolved) as write:
                return self._store.create(
                    run_id,
                    kind,
                    resolved.model_dump(mode="json"),
                    total_steps=resolved.num_training_steps if kind == "distillation" else 0,
                    session_id=resolved.session_id,
                    client_request_id=resolved.client_request_id,
                    warnings=found.warnings,
                    before_commit=write,
                )

        try:
            row = self._create_under_free_id("opd" if kind == "distillation" else "prb", config.run_id, create)
        except StateError:
            quicker = self._store.find_request(config.client_request_id)  # the same request, sent twice at once
            if quicker is None:
                raise
            row = quicker
        self._supervisor.start_next_queued()
        return replace(self._view(self._store.get(row.run_id)), message=" ".join(found.warnings))

    def _refuse_other_arguments(self, config: RunConfig, earlier: RunRow) -> None:
        """A client_request_id means the same request; only what the caller gave in both forms is compared."""
        for name in sorted(config.model_fields_set - RESOLVED_FIELDS):
            given, kept = config.model_dump(mode="json")[name], earlier.config.get(name)
            if given != kept:
                raise StateError(
                    f"client_request_id {clean_text(config.client_request_id or '', 80)!r} already started "
                    f"{earlier.run_id}, with {name} {kept!r} and not {given!r}. Call get_status for that run, or start "
                    "a new one with another client_request_id."
                )

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

        def create(job_id: str) -> RunRow:
            named = checked.spec.model_copy(update={"job_id": job_id, "run_id": source.run_id})
            return self._store.create(job_id, "comparison", named.model_dump(mode="json"), warnings=warnings)

        row = self._create_under_free_id("cmp", spec.job_id, create)
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
            shown = clean_text(cursor, 40)
            raise ConfigError(
                f"cursor {shown!r} is not one; give the next_cursor of the answer before.", field="cursor"
            )
        self._supervisor.reconcile()
        before = None if cursor is None else min(int(cursor), 2**62)
        rows = self._store.list(session_id=session_id, state=state, limit=limit + 1, before_number=before)
        next_cursor = str(rows[limit - 1].number) if len(rows) > limit else None
        return [self._with_money(row) for row in rows[:limit]], next_cursor

    def metrics(
        self,
        run_id: str | None = None,
        series: Series = "train",
        since_step: int | None = None,
        points: int = MAX_POINTS,
    ) -> builtins.list[Line]:
        """Up to `points` metric lines after `since_step`, evenly spread; the last one is always there."""
        return self._store.metrics(self._store.resolve(run_id).run_id, series, since_step, points)

    def events(self, run_id: str | None = None, after: int = 0, limit: int = 100) -> builtins.list[Event]:
        """Up to `limit` events (of one run, or all) after sequence number `after`, oldest first."""
        return self._store.events(run_id, after, limit)

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
            self._store.requeue(row.run_id, config=row.config, total_steps=0)
            return self.status(row.run_id)
        config = self._check(changed_config(row, num_training_steps, max_budget_usd)).config
        require_raise(row, config.max_budget_usd, confirmed)
        folder = self._home.checkpoint_folder(row.run_id, config.checkpoint_dir)
        make_ready = prepare_checkpoints(folder, config, from_step, accept_changes)
        self._home.prepare()

        def before_commit() -> None:
            write_whole(self._home.config(row.run_id), self._config_text(config))
            make_ready()

        if confirmed and self._ledger.totals(row.run_id).limit_pico < pico_from_usd(config.max_budget_usd):
            with contextlib.suppress(StateError):  # it has no budget yet: its worker opens one
                self._ledger.raise_limit(row.run_id, pico_from_usd(config.max_budget_usd))
        self._store.requeue(
            row.run_id,
            config=config.model_dump(mode="json"),
            total_steps=config.num_training_steps if row.kind == "distillation" else 0,
            before_commit=before_commit,
            **({} if from_step is None else {"checkpoint_path": str(folder / f"step_{from_step:06d}")}),
        )
        return self.status(row.run_id)

    def comparison_result(self, job_id: str) -> dict[str, Any]:
        """What a completed comparison found.

        Raises:
            StateError: it is not a comparison, or has not completed.
        """
        return self._result(job_id, "comparison")

    def probe_result(self, job_id: str) -> dict[str, Any]:
        """What a completed probe found: `training.probe.ProbeReport.as_record` with `job_id` and `teacher`.

        Raises:
            StateError: it is not a probe, or has not completed.
        """
        return self._result(job_id, "probe")

    def _result(self, job_id: str, kind: JobKind) -> dict[str, Any]:
        row = self.status(job_id)
        if row.kind != kind or row.state != "completed" or row.result_path is None:
            raise StateError(
                f"{row.run_id} is a {row.kind} in state {row.state}; only a completed {kind} has a result."
            )
        try:
            result: dict[str, Any] = json.loads(Path(row.result_path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StateError(f"The result of {row.run_id} cannot be read ({error}). Start it again.") from error
        return result

    def _check(self, config: RunConfig) -> Preflight:
        return self._preflight(config, self._roots, self._settings)

    @contextlib.contextmanager
    def _config_file(self, config: RunConfig) -> Iterator[Callable[[], None]]:
        """What writes the configuration's YAML inside a transaction; the file goes when the transaction fails."""
        path = self._home.config(config.run_id or "")
        is_written = False

        def write() -> None:
            nonlocal is_written
            try:
                write_whole(path, self._config_text(config))
            except OSError as error:
                raise HomeError(f"The configuration cannot be written to {path}: {error.strerror}.") from error
            is_written = True

        try:
            yield write
        except BaseException:
            if is_written:
                path.unlink(missing_ok=True)
            raise

    def _create_under_free_id(self, prefix: str, wanted: str | None, create: Callable[[str], RunRow]) -> RunRow:
        """Create under the wanted id, or one made from the time with a suffix when another start was as quick."""
        if wanted is not None:
            self._refuse_leftovers(check_run_id(wanted))
            return create(wanted)
        for attempt in range(3):
            run_id = new_run_id(prefix, self._seams.now(), attempt > 0, self._seams.token)
            try:
                self._refuse_leftovers(run_id)
                return create(run_id)
            except StateError:
                continue
        raise StateError("No free run id was found. Call again.")

    def _refuse_leftovers(self, run_id: str) -> None:
        """Files of a run whose row is gone must not be taken for this one's.

        A configuration alone is what a start leaves that died just before its commit: the next one writes over it.
        """
        for path in (self._home.checkpoints(run_id), self._home.log(run_id)):
            if path.exists():
                raise StateError(f"run_id {run_id!r} is taken: {path} exists. Choose another one or leave it out.")

    def _view(self, row: RunRow) -> RunRow:
        row = self._with_money(row)
        if row.state not in ("failed", "interrupted"):
            return row
        return replace(row, last_log_lines=log_tail(self._home.log(row.run_id)))

    def _with_money(self, row: RunRow) -> RunRow:
        """The row with how its budget stands, by the ledger."""
        if not row.is_paid:
            return row
        totals = self._ledger.totals(row.run_id)
        stopped_by_freeze = row.end_reason == "budget" and FROZEN_MARK in row.message
        asked = row.config.get("judge_budget_usd") if row.kind == "comparison" else row.config["max_budget_usd"]
        return replace(
            row,
            budget_usd=usd_from_pico(totals.limit_pico) if totals.limit_pico else asked,
            spent_usd=usd_from_pico(totals.spent_pico),
            reserved_usd=usd_from_pico(totals.reserved_pico),
            budget_warning=totals.is_near_limit,
            budget_exceeded=row.end_reason == "budget" and not stopped_by_freeze,
            frozen_budgets=tuple(self._ledger.frozen_scopes(row.run_id)),
            stopped_by_freeze=stopped_by_freeze,
        )
