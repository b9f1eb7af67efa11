"""The rule about the teacher: whether it has anything to teach this student on these prompts."""

from __future__ import annotations

from opd_core.control.diagnosis.finding import Finding, Suggestion
from opd_core.control.diagnosis.series import SMALL_KL, end_mean
from opd_core.control.evidence import RunEvidence

FULL_AGREEMENT_PCT = 98.0
"""First choices shared with the teacher before training: the rest is within a sampled answer's noise."""
EQUAL_PAIRS = 0.9


def no_teacher_headroom(evidence: RunEvidence) -> Finding | None:
    """The teacher has nothing to teach here: the student agreed, or scored as well, before training."""
    facts = _no_headroom_facts(evidence)
    if not facts:
        return None
    never = Suggestion(
        "Look at the samples with export_report, then correct check and extractor.",
        "Not even the teacher's answers pass the check, so perhaps it does not fit the form of the answers.",
        {},
    )
    return Finding(
        "no_teacher_headroom",
        "limits",
        "The teacher is hardly better than the student was: there is little to learn from it on these prompts.",
        tuple(facts),
        (
            *((never,) if _teacher_score(evidence) == 0 else ()),
            Suggestion(
                "Give the teacher more than the student has: a larger teacher_model_id, or teacher_system_prompt and "
                "teacher_examples.",
                "Distillation can only carry over what the teacher knows and the student does not.",
                {},
            ),
            Suggestion(
                "With a text teacher, call probe_teacher and take the guidance_level it recommends.",
                "The gap between the guided and the unguided student predicts the gain, before anything is paid for.",
                {},
            ),
            Suggestion("Or use harder prompts.", "Prompts that the student already answers teach it nothing.", {}),
        ),
    )


def _no_headroom_facts(evidence: RunEvidence) -> list[str]:
    first = evidence.evals[0] if evidence.evals else {}
    facts = []
    kl, agreement, score = (first.get(name) for name in ("reverse_kl", "teacher_agreement_pct", "task_score"))
    if kl is not None and kl < SMALL_KL:
        facts.append(f"held-out reverse KL before training was {kl:.3g} nats a token (limit {SMALL_KL:g})")
    if agreement is not None and agreement >= FULL_AGREEMENT_PCT:
        facts.append(f"teacher and student agreed on {agreement:.1f} % of the tokens before training")
    ceiling = _teacher_score(evidence)
    if ceiling is not None and score is not None and ceiling <= score:
        facts.append(f"the teacher's own task score is {ceiling:.1%}, the student's before training was {score:.1%}")
    equal, compared = (end_mean(evidence.series(name)) for name in ("pairs_equal", "pairs_compared"))
    if equal is not None and compared is not None and equal > 0 and equal >= EQUAL_PAIRS * (equal + compared):
        facts.append(f"{equal / (equal + compared):.0%} of the student's answers were as good as the teacher's")
    return facts


def _teacher_score(evidence: RunEvidence) -> float | None:
    """The teacher's own task score, by the newest comparison."""
    entry = ((evidence.comparison or {}).get("teacher") or {}).get("task_score") or {}
    mean = entry.get("mean")
    return None if mean is None else float(mean)


TEACHER_RULES = (no_teacher_headroom,)
