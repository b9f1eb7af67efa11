"""The answer of `check_setup`: what was found on this machine, and what is wrong in the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from server.answers.words import number, tidy
from server.schemas.planning import ProblemEntry, SetupAnswer
from server.settings import Problem

if TYPE_CHECKING:
    from opd_core.blas import BlasReport
    from opd_core.control.setup_check import SetupProblem, SetupReport


def setup(report: SetupReport, settings_problems: Sequence[Problem]) -> SetupAnswer:
    """What was found on this machine, with what is wrong in the settings."""
    found: list[Problem | SetupProblem] = [*report.problems, *settings_problems]
    problems = [ProblemEntry(what=tidy(problem.what, 400), fix=tidy(problem.fix, 400)) for problem in found[:20]]
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}" if found else "no problem"
    verdict = "This machine can start a run" if report.ready else "No run can start yet"
    active = f" Run {report.active_run} is active." if report.active_run else ""
    next_step = "Call list_models to see which models and adapters are here."
    if not report.ready:
        next_step = "Tell the user the fix of each problem, then call check_setup again."
    elif not any(model.problem is None for model in report.models.models):
        next_step = "Tell the user how to get a model (see the problems), then call list_models."
    return SetupAnswer(
        summary=f"{verdict}: {count} found; device {report.device}{_blas(report.blas)}.{active}",
        next_step=next_step,
        ready=report.ready,
        problems=problems,
        facts=tidy(report.facts, 300),
    )


def _blas(blas: BlasReport | None) -> str:
    if blas is None or blas.gflops is None:
        return ""
    return f", {blas.source} BLAS at {number(blas.gflops)} GFLOP/s"


def setup_facts(answer: SetupAnswer) -> list[str]:
    """Problems first, each with its fix, then the facts."""
    problems = [f"- Problem: {problem.what} Fix: {problem.fix}" for problem in answer.problems]
    return problems + [f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in answer.facts.items()]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)
