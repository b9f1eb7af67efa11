"""The verbs behind the tools, the command line and later the routes: one object, made before anything is needed.

Nothing is imported, opened or made until a verb is called, so that a server starts fast and an unusable home is an
error of the call that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from opd_core.config import RunConfig
from opd_core.errors import StateError
from opd_core.paths import HomePaths
from opd_core.types import END_STATES, RunState
from server.arguments import CompareArguments
from server.settings import Problem, Settings

if TYPE_CHECKING:
    from opd_core.control.estimate import Estimate
    from opd_core.control.models import LocalModels
    from opd_core.control.runs import Runs
    from opd_core.control.setup_check import SetupReport
    from opd_core.roots import Roots
    from opd_core.state.metrics import Series
    from opd_core.state.rows import RunRow


LOOK_BACK = 50


class UseCases(Protocol):
    """What the tools ask of the house; every verb blocks and raises `OPDError` on a refusal."""

    @property
    def home(self) -> HomePaths: ...
    @property
    def settings_problems(self) -> tuple[Problem, ...]: ...
    def check_setup(self) -> SetupReport: ...
    def list_models(self) -> LocalModels: ...
    def estimate(self, config: RunConfig) -> Estimate: ...
    def start(self, config: RunConfig) -> RunRow: ...
    def status(self, run_id: str | None) -> RunRow: ...
    def metrics(self, run_id: str, series: Series, since_step: int | None, points: int) -> Sequence[dict[str, Any]]: ...
    def list(
        self, session_id: str | None, state: RunState | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[RunRow], str | None]: ...
    def stop(self, run_id: str | None, timeout_seconds: float) -> RunRow: ...
    def resume(
        self,
        run_id: str | None,
        num_training_steps: int | None,
        max_budget_usd: float | None,
        confirmed: bool,
        from_step: int | None,
        accept_changes: bool,
    ) -> RunRow: ...
    def start_comparison(self, arguments: CompareArguments) -> RunRow: ...
    def comparison_result(self, job_id: str) -> dict[str, Any]: ...
    def start_probe(self, config: RunConfig) -> RunRow: ...
    def probe_result(self, job_id: str) -> dict[str, Any]: ...


class HomeUseCases:
    """The use cases of one OPD_HOME."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def home(self) -> HomePaths:
        """Where everything lies."""
        return self._settings.home

    @property
    def settings_problems(self) -> tuple[Problem, ...]:
        """What is wrong in the environment, `.env` and `settings.toml`."""
        return self._settings.problems

    @cached_property
    def _roots(self) -> Roots:
        from opd_core.roots import Roots

        outputs = [folder for folder in (self._settings.checkpoint_dir, self._settings.cache_dir) if folder]
        # over stdio the caller is the user: their own home may be read
        return Roots.of(self.home.home, self._settings.roots, Path.home(), outputs)

    @cached_property
    def _runs(self) -> Runs:
        from opd_core.control.runs import Runs

        return Runs(self._settings, self._roots)

    def check_setup(self, refresh: bool = False) -> SetupReport:
        """Look at machine, home and packages; measures the BLAS when that was not done before."""
        from opd_core.control.setup_check import check_setup

        return check_setup(self._settings, roots=self._roots, refresh=refresh)

    def list_models(self) -> LocalModels:
        """Models and adapters on this machine."""
        from opd_core.control.models import list_models

        return list_models(self.home, self._roots)

    def estimate(self, config: RunConfig) -> Estimate:
        """What a run would take, after the checks of a start."""
        from opd_core.control.estimate import estimate
        from opd_core.state.store import RunStore

        store = RunStore(self.home.database)
        try:
            return estimate(config, store, roots=self._roots, settings=self._settings)
        finally:
            store.close()

    def start(self, config: RunConfig) -> RunRow:
        """Start or queue a run."""
        return self._runs.start(config)

    def status(self, run_id: str | None) -> RunRow:
        """The run as it is now."""
        return self._runs.status(run_id)

    def metrics(self, run_id: str, series: Series, since_step: int | None, points: int) -> Sequence[dict[str, Any]]:
        """Lines of a series."""
        return self._runs.metrics(run_id, series, since_step, points)

    def list(
        self, session_id: str | None, state: RunState | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[RunRow], str | None]:
        """Runs, newest first."""
        return self._runs.list(session_id, state, limit, cursor)

    def stop(self, run_id: str | None, timeout_seconds: float) -> RunRow:
        """Stop a run cleanly."""
        return self._runs.stop(run_id, timeout_seconds)

    def resume(
        self,
        run_id: str | None,
        num_training_steps: int | None,
        max_budget_usd: float | None,
        confirmed: bool,
        from_step: int | None,
        accept_changes: bool,
    ) -> RunRow:
        """Queue a run again."""
        return self._runs.resume(run_id, num_training_steps, max_budget_usd, confirmed, from_step, accept_changes)

    def start_comparison(self, arguments: CompareArguments) -> RunRow:
        """Queue a comparison; what was left out is taken from the run.

        Raises:
            StateError: no run has finished yet, or two candidates have one name.
        """
        from opd_core.comparison import ComparisonSpec, default_candidates
        from opd_core.config import parse_config

        run = self._runs.status(arguments.run_id) if arguments.run_id else self._latest_finished()
        if run.kind != "distillation":
            raise StateError(f"{run.run_id} is a {run.kind}; give it as job_id to read its result.")
        candidates = arguments.candidates or default_candidates(parse_config(run.config), run.final_adapter_path)
        names = [candidate.name for candidate in candidates]
        if len(set(names)) < len(names):
            raise StateError(f"Two candidates have the same name ({', '.join(names)}). Name each one differently.")
        return self._runs.start_comparison(
            ComparisonSpec(
                run_id=run.run_id,
                candidates=candidates,
                max_samples=arguments.max_samples,
                seed=arguments.seed,
                judge=arguments.judge,
                judge_budget_usd=arguments.judge_budget_usd,
                judge_model_id=arguments.judge_model_id,
            )
        )

    def comparison_result(self, job_id: str) -> dict[str, Any]:
        """What a completed comparison found."""
        return self._runs.comparison_result(job_id)

    def start_probe(self, config: RunConfig) -> RunRow:
        """Queue a probe of what a text teacher's guidance does for a student."""
        return self._runs.start_probe(config)

    def probe_result(self, job_id: str) -> dict[str, Any]:
        """What a completed probe found."""
        return self._runs.probe_result(job_id)

    def _latest_finished(self) -> RunRow:
        rows, cursor = self._runs.list(limit=LOOK_BACK)
        while True:
            for row in rows:
                if row.kind == "distillation" and row.final_adapter_path is not None and row.state in END_STATES:
                    return row
            if cursor is None:
                raise StateError(
                    "No run has finished yet, so there is nothing to compare. Call list_runs, or give run_id."
                )
            rows, cursor = self._runs.list(limit=LOOK_BACK, cursor=cursor)
