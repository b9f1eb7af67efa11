"""Everything that can be found wrong with a run before it exists: values, files, models against each other.

The light half of the checks; the worker repeats what needs a loaded model (encoding probes, templates).
Nothing is written here, and all problems are told at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opd_core.adapter_files import AdapterInfo
from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.config import RunConfig
from opd_core.control.findings import Findings, one_error
from opd_core.control.preflight.models import check_adapter, check_machine, check_teacher, read_named_model
from opd_core.control.preflight.paid import check_judge, check_paid_teacher
from opd_core.control.preflight.prompts import check_amounts, check_scoring, read_run_prompts
from opd_core.control.preflight.values import value_problems, value_warnings
from opd_core.model_files import ModelInfo, read_model
from opd_core.roots import Roots
from opd_core.run_prompts import RunPrompts, load_run_prompts
from opd_core.settings import Settings


@dataclass(frozen=True)
class Preflight:
    """A configuration that may start: paths absolute, defaults decided, and what was found on the way.

    `teacher` is `None` when the student's own base model teaches.
    """

    config: RunConfig
    base: ModelInfo
    teacher: ModelInfo | None
    adapter: AdapterInfo | None
    prompts: RunPrompts
    warnings: tuple[str, ...]

    @property
    def train_count(self) -> int:
        """Number of prompts to train on."""
        return len(self.prompts.train)

    @property
    def held_out_count(self) -> int:
        """Number of held-out prompts in an evaluation."""
        return len(self.prompts.held_out)


@dataclass(frozen=True)
class CheckedComparison:
    """A comparison that may start, with absolute adapter paths, and what was found on the way."""

    spec: ComparisonSpec
    warnings: tuple[str, ...] = ()


CheckRun = Callable[[RunConfig, Roots, Settings], Preflight]
CheckComparison = Callable[[ComparisonSpec, RunConfig, Roots, Settings], CheckedComparison]


def check(config: RunConfig, roots: Roots, settings: Settings, *, is_estimate: bool = False) -> Preflight:
    """Check a configuration and decide what it left open; writes nothing.

    Args:
        settings: what a person set: the home, the ceilings of budgets, the paid teacher.
        is_estimate: a key, a budget and the user's word on the terms may still be missing; that becomes a warning.

    Raises:
        OPDError: the one problem, or a ConfigError that lists them all.
    """
    home, ceiling = settings.home, settings.max_budget_usd
    findings = Findings(problems=list(value_problems(config, ceiling)), warnings=value_warnings(config))
    if config.method == "auto" and config.teacher_kind == "local":
        findings.decided["method"] = "kl"
    if "max_budget_usd" not in config.model_fields_set:
        findings.decided["max_budget_usd"] = min(config.max_budget_usd, ceiling)
    base = read_named_model(config.base_model_path, "base_model_path", home, roots, findings)
    adapter = check_adapter(config, base, roots, findings)
    teacher = check_teacher(config, base, home, roots, findings)
    if config.teacher_kind == "claude":
        check_paid_teacher(config, base, settings, findings, is_estimate)
    _check_outputs(config, roots, findings)
    prompts = read_run_prompts(config, roots, findings)
    if prompts is not None:
        check_scoring(config, prompts, findings)
        check_amounts(config, prompts, base, findings)
    if base is not None:
        check_machine(home, [model for model in (base, teacher) if model is not None], findings)
    if findings.problems or base is None or prompts is None:
        raise one_error(findings.problems)
    resolved = config.model_copy(update=findings.decided)
    return Preflight(resolved, base, teacher, adapter, prompts, tuple([*findings.warnings, *prompts.notes]))


def _check_outputs(config: RunConfig, roots: Roots, findings: Findings) -> None:
    for name in ("checkpoint_dir", "rollout_output_dir", "val_rollout_dir"):
        folder = getattr(config, name)
        if folder is not None:
            path = findings.attempt(roots.check_output, folder, name)
            findings.decided[name] = None if path is None else str(path)


def check_comparison(spec: ComparisonSpec, config: RunConfig, roots: Roots, settings: Settings) -> CheckedComparison:
    """Check a comparison for the run with this resolved configuration.

    An adapter for another base model is not refused here: the comparison reports it and goes on with the rest.

    Raises:
        OPDError: the one problem, or a ConfigError that lists them all.
    """
    findings = Findings()
    if spec.judge:
        check_judge(spec, config, settings, findings)
    findings.attempt(read_model, Path(config.base_model_path))
    findings.attempt(load_run_prompts, config)
    candidates = []
    for candidate in spec.candidates:
        path = None
        if candidate.adapter_path is not None:
            path = findings.attempt(roots.check, candidate.adapter_path, f"adapter {candidate.name!r}", "folder")
        if path is not None:
            findings.attempt(roots.check_links, path, f"adapter {candidate.name!r}")
        candidates.append(Candidate(name=candidate.name, adapter_path=None if path is None else str(path)))
    if findings.problems:
        raise one_error(findings.problems)
    return CheckedComparison(spec.model_copy(update={"candidates": tuple(candidates)}), tuple(findings.warnings))
