"""The verbs behind the tools, the routes and the command line, as one home on disk answers them.

Nothing is imported, opened or made until a verb is called, so that a server starts fast and an unusable home is an
error of the call that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_core.config import RunConfig
from opd_core.errors import StateError
from opd_core.paths import HomePaths
from opd_core.types import END_STATES, RunState
from server.arguments.jobs import CompareArguments
from server.arguments.studies import InspectArguments, LogArguments
from server.settings import Problem, Settings

if TYPE_CHECKING:
    from opd_core.control.estimate.estimating import Estimate
    from opd_core.control.evidence import RunEvidence
    from opd_core.control.log_reading import LogPart
    from opd_core.control.models import LocalModels
    from opd_core.control.prompts.inspection import PromptInspection
    from opd_core.control.report.writing import WrittenReport
    from opd_core.control.runs import Runs
    from opd_core.control.sessions import Session
    from opd_core.control.setup_check import SetupReport
    from opd_core.roots import Roots
    from opd_core.state.metrics import Series
    from opd_core.state.rows import RunRow


LOOK_BACK = 50


class HomeUseCases:
    """The use cases of one OPD_HOME.

    `is_local`: whether the caller is the user themselves (standard input, the command line), who may name files
    anywhere in their own home; who comes over HTTP may not.
    """

    def __init__(self, settings: Settings, *, is_local: bool = True) -> None:
        self._settings = settings
        self._is_local = is_local

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
        user_home = Path.home() if self._is_local else None
        return Roots.of(self.home.home, self._settings.roots, user_home, outputs)

    @cached_property
    def _runs(self) -> Runs:
        from opd_core.control.runs import Runs

        return Runs(self._settings, self._roots)

    def check_setup(self) -> SetupReport:
        """Look at machine, home and packages; measures the BLAS when that was not done before."""
        from opd_core.control.setup_check import check_setup

        return check_setup(self._settings, roots=self._roots)

    def list_models(self) -> LocalModels:
        """Models and adapters on this machine."""
        from opd_core.control.models import list_models

        return list_models(self.home, self._roots, self._settings.roots)

    def estimate(self, config: RunConfig) -> Estimate:
        """What a run would take, after the checks of a start."""
        from opd_core.control.estimate.estimating import estimate
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

    def rollouts(self, run_id: str, count: int) -> Sequence[dict[str, Any]]:
        """The newest training rollouts, as their file has them."""
        from opd_core.control.rollout_reading import newest_rollouts

        return newest_rollouts(self.home, self._runs.status(run_id), count)

    def list(
        self, session_id: str | None, state: RunState | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[RunRow], str | None]:
        """Runs, newest first."""
        return self._runs.list(session_id, state, limit, cursor)

    def sessions(self, rows: Sequence[RunRow]) -> Sequence[Session]:
        """The sessions of runs, each with the fine-tune it began with."""
        from opd_core.control.sessions import sessions_of

        return sessions_of(rows, self.home, self._roots)

    def stop(self, run_id: str | None, timeout_seconds: float | None, force: bool = False) -> RunRow:
        """Stop a run cleanly; with `force`, which is for a person alone, it is killed when the time is up."""
        return self._runs.stop(run_id, timeout_seconds, force)

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
            ),
            arguments.confirmed,
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

    def inspect_prompts(self, arguments: InspectArguments) -> PromptInspection:
        """What the prompt files hold, as a run would read and split them."""
        from opd_core.control.prompts.inspection import inspect_prompts
        from opd_core.model_files import read_model, resolve_model

        paths = [
            self._roots.check(given, name, "file")
            for name in ("prompts_path", "validation_prompts_path")
            if (given := getattr(arguments, name)) is not None
        ]
        model = None
        if arguments.base_model_path is not None:
            model = read_model(resolve_model(arguments.base_model_path, self.home, self._roots))
        return inspect_prompts(
            paths,
            seed=arguments.seed,
            eval_max_samples=arguments.eval_max_samples,
            rollout_max_tokens=arguments.rollout_max_tokens,
            model=None if model is None else model.path,
            context_length=None if model is None else model.context_length,
            samples=arguments.samples,
        )

    def read_log(self, run_id: str, arguments: LogArguments) -> LogPart:
        """Lines of the log of a run or job that exists."""
        from opd_core.control.log_reading import read_log

        return read_log(
            self.home.log(run_id),
            arguments.mode,
            lines=arguments.lines,
            pattern=arguments.pattern,
            is_regex=arguments.regex,
            before=arguments.cursor,
        )

    def evidence(self, run_id: str | None) -> RunEvidence:
        """Everything recorded about a run, for its diagnosis and its report."""
        from opd_core.control.investigate import gather

        return gather(self._runs, self.home, run_id)

    def export_report(self, evidence: RunEvidence) -> WrittenReport:
        """Write the report of a run under OPD_HOME/reports."""
        from opd_core.control.report.writing import write_report

        return write_report(evidence, self.home)

    def report_text(self, run_id: str) -> str:
        """The report of a run as Markdown; writes nothing."""
        from opd_core.control.diagnosis.diagnosing import diagnose
        from opd_core.control.report.markdown_page import markdown_page
        from opd_core.control.report.writing import make_report

        evidence = self.evidence(run_id)
        return markdown_page(make_report(evidence, self.home, diagnose(evidence)))

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
