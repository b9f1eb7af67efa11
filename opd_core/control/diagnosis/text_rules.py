"""Rules about what the student writes: its length, its end, its loops, its variety.

Thresholds are the stop rules of the on-policy distillation literature as the project's notes gather them: length 1.5
times the baseline, more than 30 % repeated 4-grams, entropy under half of the start, more than half of the answers cut.
"""

from __future__ import annotations

from opd_core.control.diagnosis.finding import Finding, Suggestion
from opd_core.control.diagnosis.series import beginning_and_end, end_mean, has_improved, method_of
from opd_core.control.diagnosis.values import lowered_rate, power_of_two_above
from opd_core.control.evidence import RunEvidence

LENGTH_GROWTH = 1.5
"""Of the baseline's length: the stop rule `training.stop_rules.RUNAWAY_LENGTH` uses the same figure."""
REPETITION = 0.3
"""Repeated 4-grams; ordinary prose stays under a tenth. As `training.stop_rules.RUNAWAY_REPETITION`."""
TRUNCATION = 0.5
"""Half of the answers cut off: the loss is then mostly on beginnings, and the end of an answer is hardly learned."""
ENTROPY_SHARE = 0.5
"""Of the start: on-policy data comes from the student itself, and one that hardly varies shows nothing new."""
MIN_ENTROPY = 0.02
"""Nats a token; a task with one right form starts near zero, and a half of that means nothing."""


def truncation(evidence: RunEvidence) -> Finding | None:
    """Half of the rollouts, or of the newest held-out answers, end at rollout_max_tokens and not by themselves."""
    bad = [(what, rate) for what, rate in _newest_rates(evidence, "truncation_rate") if rate >= TRUNCATION]
    if not bad:
        return None
    limit = int(evidence.config.get("rollout_max_tokens") or 512)
    return Finding(
        "truncation",
        "harms",
        f"Most answers are cut off at {limit} tokens, so the student hardly ever learns how an answer ends.",
        tuple(f"{rate:.0%} of the {what} reached rollout_max_tokens {limit}" for what, rate in bad),
        (
            Suggestion(
                f"Start a run with rollout_max_tokens {2 * limit}.",
                "Answers that end by themselves are needed to learn the end; if the rate stays, the student does not "
                "know when to stop.",
                {"rollout_max_tokens": 2 * limit},
            ),
            Suggestion(
                "Or give the student a fine-tuned adapter first (student_adapter_path), or use_sft_mixup true.",
                "A base model without instruction training, or a wrong end-of-turn token, never stops by itself.",
                {"use_sft_mixup": True},
            ),
        ),
    )


def length_inflation(evidence: RunEvidence) -> Finding | None:
    """Held-out answers, else rollouts, have become half as long again as at the beginning."""
    held_out = evidence.eval_series("completion_tokens_mean")
    ends = (held_out[0][1], held_out[-1][1]) if len(held_out) > 1 else None
    what = "held-out answers"
    if ends is None:
        ends, what = beginning_and_end(evidence.series("completion_tokens_mean")), "rollouts"
    if ends is None or ends[0] <= 0 or ends[1] < LENGTH_GROWTH * ends[0]:
        return None
    cap = power_of_two_above(LENGTH_GROWTH * ends[0])
    return Finding(
        "length_inflation",
        "harms",
        f"The {what} have grown from {ends[0]:.0f} to {ends[1]:.0f} tokens: the student has learned to write longer, "
        "not necessarily better.",
        (f"length of the {what} is {ends[1] / ends[0]:.2f} times that of the beginning",),
        (
            Suggestion(
                f"Start a run with rollout_max_tokens {cap} and early_stopping_patience 2.",
                "A cap near the length of good answers takes away what is gained by writing on; the best adapter is "
                "from before it came apart.",
                {"rollout_max_tokens": cap, "early_stopping_patience": 2},
            ),
            Suggestion(
                f"Halve learning_rate to {lowered_rate(evidence, 2)}.",
                "A smaller step follows the teacher without running past it.",
                {"learning_rate": lowered_rate(evidence, 2)},
            ),
        ),
    )


def repetition(evidence: RunEvidence) -> Finding | None:
    """Three tenths of the 4-grams repeat, in the newest rollouts or held-out answers."""
    bad = [(what, rate) for what, rate in _newest_rates(evidence, "repetition_rate") if rate > REPETITION]
    if not bad:
        return None
    return Finding(
        "repetition",
        "harms",
        "The student repeats itself: its answers loop.",
        tuple(
            f"{rate:.0%} of the 4-grams of the {what} are repetitions (limit {REPETITION:.0%})" for what, rate in bad
        ),
        (
            Suggestion(
                f"Start again with learning_rate {lowered_rate(evidence, 2)} and early_stopping_patience 2.",
                "Loops are what a student falls into after too large steps; the teacher scores drifted text badly, so "
                "it seldom comes back.",
                {"learning_rate": lowered_rate(evidence, 2), "early_stopping_patience": 2},
            ),
            Suggestion(
                "Keep rollout_temperature 1.0 and rollout_top_p 1.0.",
                "Colder sampling loops by itself, and the divergence is that of the untempered student.",
                {"rollout_temperature": 1.0, "rollout_top_p": 1.0},
            ),
        ),
    )


def entropy_collapse(evidence: RunEvidence) -> Finding | None:
    """The student's entropy is under half of its start, and the held-out figures are not better for it.

    A task with one right form makes a student certain as it becomes right; so an improved run is left alone.
    """
    ends = beginning_and_end(evidence.series("student_entropy"))
    if ends is None or ends[0] < MIN_ENTROPY or ends[1] >= ENTROPY_SHARE * ends[0] or has_improved(evidence):
        return None
    return Finding(
        "entropy_collapse",
        "harms",
        f"The student's entropy fell from {ends[0]:.3g} to {ends[1]:.3g} nats a token without a better held-out "
        "result: it has stopped exploring.",
        (f"entropy is {ends[1] / ends[0]:.0%} of its start (limit {ENTROPY_SHARE:.0%})",),
        (
            Suggestion(
                f"Halve learning_rate to {lowered_rate(evidence, 2)}.",
                "Reverse KL seeks one mode; smaller steps leave time to find the right one.",
                {"learning_rate": lowered_rate(evidence, 2)},
            ),
            *_ties(evidence),
        ),
    )


def _ties(evidence: RunEvidence) -> list[Suggestion]:
    """What keeps variety, where the method has something for it."""
    if method_of(evidence) == "kl":
        why = "The generalised Jensen-Shannon divergence also asks the student to cover what the teacher would say."
        return [Suggestion("Start a run with beta 0.5.", why, {"beta": 0.5})]
    if method_of(evidence) == "coach":
        why = "It ties the student to what it was at the start."
        return [Suggestion("Start a run with anchor_weight 0.05.", why, {"anchor_weight": 0.05})]
    return []


def _newest_rates(evidence: RunEvidence, metric: str) -> list[tuple[str, float]]:
    """What a share is now, in the last fifth of the rollouts and in the newest evaluation, where it was measured."""
    rollouts, held_out = end_mean(evidence.series(metric)), evidence.eval_series(metric)
    rates = [] if rollouts is None else [("training rollouts", rollouts)]
    return rates + ([("held-out answers", held_out[-1][1])] if held_out else [])


TEXT_RULES = (repetition, truncation, length_inflation, entropy_collapse)
