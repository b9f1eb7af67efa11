"""Rules about learning: whether the student follows the teacher, and whether the teacher has anything to teach."""

from __future__ import annotations

import statistics

from opd_core.control.diagnosis_model import Finding, Suggestion
from opd_core.control.diagnosis_series import (
    beginning_and_end,
    end_mean,
    is_better,
    method_of,
    primary_metric,
    primary_points,
)
from opd_core.control.diagnosis_values import learning_rate
from opd_core.control.evidence import RunEvidence

KL_RISE = 1.5
"""Times the start. Steps differ by their prompts, a fifth of the run averages that out; half as much again does not
come from prompts."""
SMALL_KL = 0.01
"""Nats a token: what two half-precision passes over the same weights already differ by. Below it there is nothing
left to learn, and no plateau to complain about."""
FULL_AGREEMENT_PCT = 98.0
"""First choices shared with the teacher before training: the rest is within a sampled answer's noise."""
PLATEAU_LINES = 30
PLATEAU_CHANGE = 0.02
"""Between the middle and the last third of the run, as a share of the middle: under what one more third would bring."""
FOLLOWED = 0.1
"""Fall of the reverse KL by which a run has at least followed its teacher."""
USUAL_RATES = {"kl": 1e-4, "coach": 5e-5, "contrast": 1e-5, "sft": 1e-4}
"""Adam for LoRA: Thinking Machines' 1e-4 for kl (full fine-tuning rates times ten), half for coach, DPO's for
contrast."""
HIGH_RATES = {"kl": 5e-4, "coach": 2e-4, "contrast": 2e-5, "sft": 5e-4}
"""The largest that published LoRA runs of each kind used (self-distillation fine-tuning 5e-4, DPO 2e-5)."""
FEW_HELD_OUT = 20
"""As the preflight warns: at 20 prompts a share's 95 % interval is still 40 points wide."""
GOOD_HELD_OUT = 40
EQUAL_PAIRS = 0.9


def diverging(evidence: RunEvidence) -> Finding | None:
    """The rollouts' reverse KL rose to 1.5 times its start: steps too large, or a student that drifts."""
    ends = beginning_and_end(evidence.series("kl_divergence_mean"))
    if ends is None or ends[1] < KL_RISE * ends[0] or ends[1] < SMALL_KL:
        return None
    lower = float(f"{learning_rate(evidence) / 3:.2g}")
    return Finding(
        "diverging",
        "harms",
        f"The student moves away from the teacher: reverse KL rose from {ends[0]:.3g} to {ends[1]:.3g} nats a token.",
        (f"the last fifth of the steps has {ends[1] / max(ends[0], 1e-9):.2f} times the reverse KL of the first",),
        (
            Suggestion(
                f"Start again with learning_rate {lower:g} and lr_warmup_steps 20.",
                "A rising divergence means that steps overshoot; a third of the rate is the usual next try.",
                {"learning_rate": lower, "lr_warmup_steps": 20},
            ),
            Suggestion(
                "Draw more rollouts a step: batch_size 8.",
                "A gradient from few answers is mostly noise.",
                {"batch_size": max(8, 2 * int(evidence.config.get("batch_size") or 4))},
            ),
        ),
    )


def learning_rate_too_high(evidence: RunEvidence) -> Finding | None:
    """The rate is above what published runs of the method used, and no later evaluation beat the baseline."""
    method = method_of(evidence)
    rate, highest = learning_rate(evidence), HIGH_RATES.get(method, 5e-4)
    if rate <= highest or not _never_better(evidence, evaluations=1):
        return None
    usual = USUAL_RATES.get(method, 1e-4)
    return Finding(
        "learning_rate_too_high",
        "limits",
        f"learning_rate {rate:g} is high for method {method}, and no evaluation was better than before training.",
        (f"learning_rate {rate:g}; published LoRA runs of this kind use up to {highest:g}",),
        (
            Suggestion(
                f"Start a run with learning_rate {usual:g}.", "The usual one for this method.", {"learning_rate": usual}
            ),
        ),
    )


def learning_rate_too_low(evidence: RunEvidence) -> Finding | None:
    """Under a third of the usual rate, and after 30 recorded steps the reverse KL has hardly moved."""
    method, rate = method_of(evidence), learning_rate(evidence)
    usual = USUAL_RATES.get(method, 1e-4)
    points = evidence.series("kl_divergence_mean")
    ends = beginning_and_end(points)
    if ends is None or len(points) < PLATEAU_LINES or rate >= usual / 3 or ends[0] < SMALL_KL:
        return None
    if abs(ends[1] - ends[0]) >= FOLLOWED * ends[0]:
        return None
    return Finding(
        "learning_rate_too_low",
        "limits",
        f"The student hardly moves: reverse KL went from {ends[0]:.3g} to {ends[1]:.3g} at learning_rate {rate:g}.",
        (f"change of {abs(ends[1] - ends[0]) / ends[0]:.0%} over the run; the usual rate is {usual:g}",),
        (
            Suggestion(
                f"Start a run with learning_rate {usual:g}.",
                "LoRA needs about ten times the rate of full fine-tuning.",
                {"learning_rate": usual},
            ),
        ),
    )


def kl_plateau(evidence: RunEvidence) -> Finding | None:
    """The reverse KL fell and has then stayed: the last third is within 2 % of the middle one, above the noise."""
    points = evidence.series("kl_divergence_mean")
    if len(points) < PLATEAU_LINES:
        return None
    values, third = [value for _, value in points], len(points) // 3
    middle, last = statistics.fmean(values[third : 2 * third]), statistics.fmean(values[-third:])
    first = statistics.fmean(values[: len(values) // 5])
    if last < SMALL_KL or abs(middle - last) > PLATEAU_CHANGE * middle or last > (1 - FOLLOWED) * first:
        return None
    rank = int(evidence.config.get("lora_rank") or 32)
    return Finding(
        "kl_plateau",
        "limits",
        f"Reverse KL has settled at {last:.3g} nats a token: more steps of the same kind bring nothing.",
        (f"middle third {middle:.3g}, last third {last:.3g}; it began at {first:.3g}",),
        (
            Suggestion(
                "Stop here and judge the adapter with compare_adapters.",
                "What can be learned this way has been learned; the best adapter is kept.",
                {},
            ),
            Suggestion(
                f"To go further, start from this adapter with lora_rank {2 * rank} or more different prompts.",
                "What is left is either beyond the adapter's size or not in these prompts.",
                {"lora_rank": 2 * rank},
            ),
        ),
    )


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


def no_improvement(evidence: RunEvidence) -> Finding | None:
    """After two or more evaluations none was better than the one before training."""
    if not _never_better(evidence, evaluations=2):
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
    if len(points) < 3 or _never_better(evidence, evaluations=1):
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
    most = int(evidence.config.get("eval_max_samples") or 100)
    is_capped = most <= counts[-1]
    field, why = _held_out_source(evidence)
    change = (
        Suggestion(
            f"Start a run with eval_max_samples {GOOD_HELD_OUT}.",
            "The run was told to evaluate on so few.",
            {"eval_max_samples": GOOD_HELD_OUT},
        )
        if is_capped
        else Suggestion(
            f"Give a {field} with {GOOD_HELD_OUT} prompts or more.",
            why,
            {},
        )
    )
    return Finding(
        "few_held_out",
        "limits",
        f"Only {counts[-1]} held-out prompts: only a large difference can be told from chance.",
        (f"{counts[-1]} held-out prompts; {GOOD_HELD_OUT} or more are better",),
        (change,),
    )


def _held_out_source(evidence: RunEvidence) -> tuple[str, str]:
    """What to give for more held-out prompts, and why there are few now."""
    if evidence.config.get("validation_prompts_path") is None:
        return (
            "validation_prompts_path",
            "Without one a fifth of the training file is held out, too little here.",
        )
    if evidence.config.get("prompts_path") is None:
        return (
            "prompts_path for training, and a validation_prompts_path",
            "The validation file was the only one given, so it was split: a fifth of it is held out, and the rest is "
            "trained on.",
        )
    return "validation_prompts_path", "Every prompt of the present validation file is held out, and it has no more."


def _never_better(evidence: RunEvidence, evaluations: int) -> bool:
    """At least `evaluations` came after the baseline, and none was better than it."""
    points, name = primary_points(evidence), primary_metric(evidence)
    later = points[1:]
    return len(later) >= evaluations and not any(is_better(value, points[0][1], name) for _, value in later)


LEARNING_RULES = (
    diverging,
    no_teacher_headroom,
    learning_rate_too_high,
    learning_rate_too_low,
    kl_plateau,
    no_improvement,
    few_held_out,
    best_was_earlier,
)
