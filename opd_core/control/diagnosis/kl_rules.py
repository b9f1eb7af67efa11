"""Rules about reverse KL over the steps and the learning rate behind it: whether the student follows its teacher."""

from __future__ import annotations

import statistics

from opd_core.control.diagnosis.finding import Finding, Suggestion
from opd_core.control.diagnosis.series import SMALL_KL, beginning_and_end, is_never_better, method_of
from opd_core.control.diagnosis.values import learning_rate, lowered_rate
from opd_core.control.evidence import RunEvidence

KL_RISE = 1.5
"""Times the start. Steps differ by their prompts, a fifth of the run averages that out; half as much again does not
come from prompts."""
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


def diverging(evidence: RunEvidence) -> Finding | None:
    """The rollouts' reverse KL rose to 1.5 times its start: steps too large, or a student that drifts."""
    ends = beginning_and_end(evidence.series("kl_divergence_mean"))
    if ends is None or ends[1] < KL_RISE * ends[0] or ends[1] < SMALL_KL:
        return None
    lower = lowered_rate(evidence, 3)
    prompts = max(8, 2 * int(evidence.config.get("batch_size") or 4))
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
                f"Draw more rollouts a step: batch_size {prompts}.",
                "A gradient from few answers is mostly noise.",
                {"batch_size": prompts},
            ),
        ),
    )


def learning_rate_too_high(evidence: RunEvidence) -> Finding | None:
    """The rate is above what published runs of the method used, and no later evaluation beat the baseline."""
    method = method_of(evidence)
    rate, highest = learning_rate(evidence), HIGH_RATES.get(method, 5e-4)
    if rate <= highest or not is_never_better(evidence, evaluations=1):
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


KL_RULES = (diverging, learning_rate_too_high, learning_rate_too_low, kl_plateau)
