"""Rules about the held-out evaluations: whether the student got better, when it was best, and whether one can tell."""

from __future__ import annotations

from opd_core.control.diagnosis.finding import Finding, Suggestion
from opd_core.control.diagnosis.series import is_never_better, primary_metric, primary_points
from opd_core.control.evidence import RunEvidence
from opd_core.intervals import FEW_HELD_OUT

GOOD_HELD_OUT = 40


def no_improvement(evidence: RunEvidence) -> Finding | None:
    """After two or more evaluations none was better than the one before training."""
    if not is_never_better(evidence, evaluations=2):
        return None
    points, name, kept = primary_points(evidence), primary_metric(evidence), evidence.row.best_step
    adapter = f"that of step {kept}, no better by this measure" if kept else "the one the run began with"
    return Finding(
        "no_improvement",
        "limits",
        f"No evaluation was better than the one before training ({name} {points[0][1]:.3g}, now {points[-1][1]:.3g}); "
        f"the adapter that is kept is {adapter}.",
        tuple(f"step {step}: {name} {value:.3g}" for step, value in points[-4:]),
        (
            Suggestion(
                "Look at the other findings first; without one, try other guidance or another teacher.",
                "The student followed something, but not what the held-out prompts ask for.",
                {},
            ),
        ),
    )


def best_was_earlier(evidence: RunEvidence) -> Finding | None:
    """The best evaluation is not the newest one: the adapter to use is that of the best step."""
    points, name = primary_points(evidence), primary_metric(evidence)
    if len(points) < 3 or is_never_better(evidence, evaluations=1):
        return None
    recorded = [point for point in points if point[0] == evidence.row.best_step]
    best = recorded[0] if recorded else (max if name == "task_score" else min)(points, key=lambda point: point[1])
    if best[1] == points[-1][1]:
        return None
    folder = evidence.row.final_adapter_path or "the run's checkpoint folder"
    return Finding(
        "best_was_earlier",
        "note",
        f"The best adapter is that of step {best[0]}, not the last one: {name} was {best[1]:.3g} there and is "
        f"{points[-1][1]:.3g} at step {points[-1][0]}.",
        (f"the best adapter is kept in {folder}",),
        (
            Suggestion(
                "Use the kept adapter; start longer runs with early_stopping_patience 2.",
                "Held-out figures fall off after the best step, and steps beyond it only cost.",
                {"early_stopping_patience": 2},
            ),
        ),
    )


def few_held_out(evidence: RunEvidence) -> Finding | None:
    """Fewer than 20 held-out prompts: hardly any difference can be told from chance."""
    counts = [int(line["held_out_prompts"]) for line in evidence.evals if line.get("held_out_prompts") is not None]
    if not counts or counts[-1] >= FEW_HELD_OUT:
        return None
    return Finding(
        "few_held_out",
        "limits",
        f"Only {counts[-1]} held-out prompts: only a large difference can be told from chance.",
        (f"{counts[-1]} held-out prompts; {GOOD_HELD_OUT} or more are better",),
        (_more_held_out(evidence, counts[-1]),),
    )


def _more_held_out(evidence: RunEvidence, now: int) -> Suggestion:
    """How to get more held-out prompts, by why there are few now."""
    if int(evidence.config.get("eval_max_samples") or 100) <= now:
        why, settings = "The run was told to evaluate on so few.", {"eval_max_samples": GOOD_HELD_OUT}
        return Suggestion(f"Start a run with eval_max_samples {GOOD_HELD_OUT}.", why, settings)
    file = "validation_prompts_path"
    if evidence.config.get("validation_prompts_path") is None:
        why = "Without one a fifth of the training file is held out, too little here."
    elif evidence.config.get("prompts_path") is None:
        file = "prompts_path for training, and a validation_prompts_path"
        why = (
            "The validation file was the only one given, so it was split: a fifth of it is held out, and the rest is "
            "trained on."
        )
    else:
        why = "Every prompt of the present validation file is held out, and it has no more."
    return Suggestion(f"Give a {file} with {GOOD_HELD_OUT} prompts or more.", why, {})


HELD_OUT_RULES = (no_improvement, few_held_out, best_was_earlier)
