"""Putting jobs into the queue: new ones under a free id, ended ones again, one job for a request sent twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig
from opd_core.control.resuming import why_not_resumable
from opd_core.errors import HomeError, StateError
from opd_core.paths import HomePaths, check_run_id, new_run_id, write_whole
from opd_core.seams import Seams
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import RESUMABLE_STATES, clean_text

RESOLVED_FIELDS = frozenset(
    {
        *("base_model_path", "student_adapter_path", "teacher_model_id", "prompts_path", "validation_prompts_path"),
        *("rollout_output_dir", "val_rollout_dir", "checkpoint_dir", "method", "run_id", "confirmed"),
    }
)
"""Written into a run otherwise than the caller gave them."""


def refuse_other_arguments(config: RunConfig, earlier: RunRow) -> None:
    """A client_request_id means the same request; only what the caller gave in both forms is compared.

    Raises:
        StateError: names the first field that differs.
    """
    for name in sorted(config.model_fields_set - RESOLVED_FIELDS):
        given, kept = config.model_dump(mode="json")[name], earlier.config.get(name)
        if given != kept:
            raise StateError(
                f"client_request_id {clean_text(config.client_request_id or '', 80)!r} already started "
                f"{earlier.run_id}, with {name} {kept!r} and not {given!r}. Call get_status for that run, or start "
                "a new one with another client_request_id."
            )


def requeue(store: RunStore, row: RunRow, **changed: Any) -> None:
    """Put an ended job into the queue again, with what `RunStore.requeue` may change.

    Raises:
        StateError: another call was quicker; says what the job does now.
    """
    try:
        store.requeue(row.run_id, **changed)
    except StateError as error:
        now = store.get(row.run_id)
        if now.state in RESUMABLE_STATES:
            raise
        raise StateError(why_not_resumable(now)) from error


class NewJobs:
    """Makes the queued rows of one home, each under an id that nothing else has.

    Args:
        config_text: what stands in a run's configuration file.
    """

    def __init__(self, home: HomePaths, store: RunStore, seams: Seams, config_text: Callable[[RunConfig], str]) -> None:
        self._home, self._store, self._seams, self._config_text = home, store, seams, config_text

    def create_run(self, config: RunConfig, kind: Literal["distillation", "probe"], warnings: Sequence[str]) -> RunRow:
        """A queued run or probe with its configuration's file, else the one that the same request just made.

        Raises:
            StateError: its id is taken.
            HomeError: the configuration cannot be written; no row is left.
        """

        def create(run_id: str) -> RunRow:
            resolved = config.model_copy(update={"run_id": run_id})
            with self._config_file(resolved) as write:
                return self._store.create(
                    run_id,
                    kind,
                    resolved.model_dump(mode="json"),
                    total_steps=resolved.num_training_steps if kind == "distillation" else 0,
                    session_id=resolved.session_id,
                    client_request_id=resolved.client_request_id,
                    warnings=warnings,
                    before_commit=write,
                )

        try:
            return self._create_under_free_id("opd" if kind == "distillation" else "prb", config.run_id, create)
        except StateError:
            quicker = self._store.find_request(config.client_request_id)  # the same request, sent twice at once
            if quicker is None:
                raise
            return quicker

    def create_comparison(self, spec: ComparisonSpec, run_id: str, warnings: Sequence[str]) -> RunRow:
        """A queued comparison of adapters on the held-out prompts of `run_id`.

        Raises:
            StateError: its id is taken.
        """

        def create(job_id: str) -> RunRow:
            named = spec.model_copy(update={"job_id": job_id, "run_id": run_id})
            return self._store.create(job_id, "comparison", named.model_dump(mode="json"), warnings=warnings)

        return self._create_under_free_id("cmp", spec.job_id, create)

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
