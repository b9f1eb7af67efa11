"""From held-out evaluations of several adapters to a table with intervals and verdicts; arithmetic only.

Every candidate answers the same prompts, so differences are taken prompt by prompt. Figures over tokens (reverse KL,
agreement) are ratios of sums; their intervals use the ratio's linearisation, value R + w(x − R)/mean(w) per prompt
(Cochran 1977, §6.4), whose mean is the ratio itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from opd_core.intervals import MIN_PAIRS, Interval, differing, mean_interval, paired_bootstrap, verdict, wilson_interval
from opd_core.training.evaluator import Evaluation, SampleScore

Metric = Literal["task_score", "reverse_kl", "teacher_agreement_pct", "completion_tokens"]
Primary = Metric | Literal["judgement"]
Values = list[float | None]
"""One value a prompt, in the order of the prompts; `None` where it could not be taken."""

METRICS: tuple[Metric, ...] = ("task_score", "reverse_kl", "teacher_agreement_pct", "completion_tokens")
HIGHER_IS_BETTER: dict[Metric, bool | None] = {
    "task_score": True,
    "reverse_kl": False,
    "teacher_agreement_pct": True,
    "completion_tokens": None,
}


def metric_values(samples: Sequence[SampleScore]) -> dict[Metric, Values]:
    """Each metric's value for each prompt; token metrics linearised (see the module)."""
    agreement = [None if sample.agreement is None else 100 * sample.agreement for sample in samples]
    weights = [sample.completion_tokens for sample in samples]
    return {
        "task_score": [sample.task_score for sample in samples],
        "reverse_kl": _linearised([sample.reverse_kl for sample in samples], weights),
        "teacher_agreement_pct": _linearised(agreement, weights),
        "completion_tokens": [float(weight) for weight in weights],
    }


def _linearised(values: Values, weights: Sequence[int]) -> Values:
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None and weight]
    if not pairs:
        return [None] * len(values)
    ratio = sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    mean_weight = statistics.fmean(weight for _, weight in pairs)
    return [
        None if value is None or not weight else ratio + weight * (value - ratio) / mean_weight
        for value, weight in zip(values, weights, strict=True)
    ]


def interval_entry(values: Values) -> dict[str, Any] | None:
    """`{mean, low, high, samples}` at 95 %: Wilson's for zeros and ones, else Student's; `None` without values."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    interval = mean_interval(present)
    if all(value in (0.0, 1.0) for value in present):
        interval = wilson_interval(round(sum(present)), len(present))
    return {**_bounds(interval), "samples": len(present)}


def difference_entry(candidate: Values, reference: Values, metric: Metric, seed: int) -> dict[str, Any] | None:
    """`{mean, low, high, pairs, verdict}` of candidate minus reference; `None` when no prompt has both."""
    paired = zip(candidate, reference, strict=True)
    differences = [one - other for one, other in paired if one is not None and other is not None]
    if not differences:
        return None
    interval = paired_bootstrap(differences, seed)
    higher_is_better = HIGHER_IS_BETTER[metric]
    words = None if higher_is_better is None else verdict(interval, differing(differences), higher_is_better)
    return {**_bounds(interval), "pairs": len(differences), "verdict": words}


def _bounds(interval: Interval) -> dict[str, float | None]:
    """JSON knows no infinity: an open end is null."""
    return {name: value if math.isfinite(value) else None for name, value in interval._asdict().items()}


def table_rows(
    evaluations: Mapping[str, Evaluation], reference: str, primary: Primary | None, seed: int
) -> dict[str, dict[str, Any]]:
    """Name to figures; `versus_reference` and `verdict` are null for the reference itself."""
    values = {name: metric_values(evaluation.samples) for name, evaluation in evaluations.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, evaluation in evaluations.items():
        summary = evaluation.summary()
        row: dict[str, Any] = {metric: interval_entry(values[name][metric]) for metric in METRICS}
        row |= {rate: summary[rate] for rate in ("truncation_rate", "repetition_rate")}
        versus = None
        if name != reference:
            versus = {
                metric: difference_entry(values[name][metric], values[reference][metric], metric, seed)
                for metric in METRICS
            }
        verdict_entry = versus[primary] if versus and primary in METRICS else None
        rows[name] = {**row, "versus_reference": versus, "verdict": verdict_entry and verdict_entry["verdict"]}
    return rows


def judged_rows(
    rows: Mapping[str, dict[str, Any]], judged: Mapping[str, Any] | None, primary: Primary | None
) -> dict[str, dict[str, Any]]:
    """The rows with each candidate's judgement (null where there is none); the verdict follows it when it decides."""
    found: Mapping[str, Any] = judged["candidates"] if judged else {}
    full = {name: {**row, "judged": found.get(name)} for name, row in rows.items()}
    if primary == "judgement":
        full = {name: {**row, "verdict": (row["judged"] or {}).get("verdict")} for name, row in full.items()}
    return full


def summary_text(
    rows: Mapping[str, Mapping[str, Any]],
    reference: str,
    primary: Primary | None,
    prompts: int,
    teacher_score: Mapping[str, Any] | None,
) -> str:
    """The result in a few plain sentences."""
    compared = [name for name in rows if name != reference]
    start = f"On {prompts} held-out prompts"
    if primary is None:
        sentences = [f"{start} answers were written, but nothing here says which are better: the run has no check."]
    elif primary == "judgement":
        sentences = [f"{start} the others were judged against {reference}."]
    else:
        sentences = [f"{start}, {reference} has {_words(primary, rows[reference][primary])}."]
        sentences += [_compared_sentence(name, rows[name], primary) for name in compared]
    sentences += [_judged_sentence(name, reference, rows[name]["judged"]) for name in compared if rows[name]["judged"]]
    if compared and prompts < MIN_PAIRS:
        sentences.append(f"With fewer than {MIN_PAIRS} prompts no difference can be shown.")
    if teacher_score is not None:
        sentences.append(f"The teacher itself has {_words('task_score', teacher_score)}.")
    return " ".join(sentences)


def _compared_sentence(name: str, row: Mapping[str, Any], metric: Metric) -> str:
    difference = row["versus_reference"][metric] or {}
    low, high = (_amount(metric, difference.get(end)) for end in ("low", "high"))
    return (
        f"{name} has {_words(metric, row[metric])}: {row['verdict'] or 'not comparable'} "
        f"(95 % interval of the difference {low} to {high})."
    )


def _judged_sentence(name: str, reference: str, judged: Mapping[str, Any]) -> str:
    rate = judged["length_controlled_win_rate"]
    if rate is None:
        return f"No judgement of {name} could be used."
    return (
        f"The judge prefers {name} to {reference} on {100 * judged['win_rate']:.1f} % of {judged['pairs']} prompts, at "
        f"equal length on {100 * rate['mean']:.1f} % ({100 * rate['low']:.1f} % to {100 * rate['high']:.1f} %): "
        f"{judged['verdict']}."
    )


def _words(metric: Metric, entry: Mapping[str, Any] | None) -> str:
    names = {"task_score": "task score", "reverse_kl": "reverse KL"}
    return f"{names.get(metric, metric)} {_amount(metric, entry['mean'] if entry else None)}"


def _amount(metric: Metric, value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{100 * value:.1f} %" if metric == "task_score" else f"{value:.3g}"
