"""Why a run is as it is: every rule over its series, configuration, evaluations and end, the gravest finding first."""

from __future__ import annotations

from collections.abc import Callable

from opd_core.control.diagnosis.end_rules import END_RULES
from opd_core.control.diagnosis.finding import ORDER, Diagnosis, Finding
from opd_core.control.diagnosis.held_out_rules import HELD_OUT_RULES
from opd_core.control.diagnosis.kl_rules import KL_RULES
from opd_core.control.diagnosis.teacher_rules import TEACHER_RULES
from opd_core.control.diagnosis.text_rules import TEXT_RULES
from opd_core.control.evidence import RunEvidence

Rule = Callable[[RunEvidence], Finding | None]
RULES: tuple[Rule, ...] = (*END_RULES, *TEXT_RULES, *TEACHER_RULES, *KL_RULES, *HELD_OUT_RULES)
"""In each degree of gravity the earlier rule gives the verdict: causes before symptoms."""
MIN_LINES = 5


def diagnose(evidence: RunEvidence) -> Diagnosis:
    """Apply every rule; the gravest finding is the verdict, else `healthy`, or `too_early` to tell.

    Returns:
        The verdict, a sentence that says it, and all findings, the gravest first.
    """
    found = [finding for rule in RULES if (finding := rule(evidence)) is not None]
    found.sort(key=lambda finding: ORDER.index(finding.severity))
    if found:
        return Diagnosis(found[0].name, found[0].sentence, tuple(found))
    if len(evidence.train) < MIN_LINES and len(evidence.evals) < 2:
        return Diagnosis(
            "too_early", "Too little is recorded to judge it: fewer than five steps and no second evaluation.", ()
        )
    return Diagnosis("healthy", _healthy(evidence), ())


def _healthy(evidence: RunEvidence) -> str:
    kl, score = (evidence.eval_series(name) for name in ("reverse_kl", "task_score"))
    parts = [f"held-out reverse KL went from {kl[0][1]:.3g} to {kl[-1][1]:.3g}"] if len(kl) > 1 else []
    parts += [f"task score from {score[0][1]:.1%} to {score[-1][1]:.1%}"] if len(score) > 1 else []
    return f"No rule found anything wrong{'; ' if parts else ''}{' and '.join(parts)}."
