"""Blind judgement of answers by a text teacher: every candidate against the reference, on the same held-out prompts.

Judges prefer long answers, so beside the plain win rate stands a length-controlled one: the chance to win at equal
length, by a logistic fit of the judgements on the difference in length (after AlpacaEval 2, arXiv 2404.04475, with the
length term only). The judge is asked by a template of its own, in both orders, and knows no author.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opd_core.errors import BudgetExceededError, OPDError, TeacherStoppedError
from opd_core.guidance import Judgement, JudgePair, Preference
from opd_core.intervals import Z_95, Interval, verdict
from opd_core.training.evaluator import Evaluation, Progress
from opd_core.training.teaching import TextTeacher
from opd_core.types import clean_text

PROMPTS_PER_ASKING = 8
"""Judgements got before a budget ends are kept in portions of so many prompts."""
BUDGET_NOTE = (
    "Not all answers were judged: what is left of judge_budget_usd may not pay for the next judgement. For more, "
    "compare again with a larger judge_budget_usd; what is judged already comes from the cache and costs nothing."
)
POINTS: dict[Preference, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}
FIT_STEPS = 50

Judged = tuple[float, int, bool]
"""One prompt: points of the candidate, its tokens less the reference's, whether both orders gave the same answer."""


def judge_evaluations(
    judge: TextTeacher,
    evaluations: Mapping[str, Evaluation],
    reference: str,
    on_progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Judge every candidate against the reference; None when stopped on the way.

    A judge that cannot go on (budget, refusal, outage) ends the judging, not the comparison; `note` says so. Returns
    `{name, cost_usd, calls, cache_hits, note, candidates {name: {win_rate, length_controlled_win_rate {mean, low,
    high}, wins, losses, ties, inconsistent, pairs, unusable, verdict}}}`.
    """
    before = judge.stats()
    names = [name for name in evaluations if name != reference]
    judged: dict[str, list[Judged]] = {name: [] for name in names}
    unusable = dict.fromkeys(names, 0)
    prompts, note = len(evaluations[reference].samples), ""
    try:
        # every candidate in each portion, so that a budget that ends cuts all of them alike
        for start in range(0, prompts, PROMPTS_PER_ASKING):
            for name in names:
                if should_stop():
                    return None
                part = slice(start, start + PROMPTS_PER_ASKING)
                found = _judge_part(judge, evaluations[name], evaluations[reference], part)
                judged[name] += [entry for entry in found if entry is not None]
                unusable[name] += sum(entry is None for entry in found)
            on_progress(min(start + PROMPTS_PER_ASKING, prompts), prompts)
    except TeacherStoppedError:
        return None
    except BudgetExceededError as error:
        note = BUDGET_NOTE if error.scope == "run" else f"Not all answers were judged: {clean_text(str(error), 300)}"
    except OPDError as error:
        note = f"Not all answers were judged: {clean_text(str(error), 300)}"
    after = judge.stats()
    return {
        "name": judge.name,
        "cost_usd": after.cost_usd - before.cost_usd,
        "calls": after.calls - before.calls,
        "cache_hits": after.cache_hits - before.cache_hits,
        "note": note,
        "candidates": {name: {**judged_entry(judged[name]), "unusable": unusable[name]} for name in names},
    }


def _judge_part(judge: TextTeacher, candidate: Evaluation, reference: Evaluation, part: slice) -> list[Judged | None]:
    """One entry a prompt; None where the judge gave nothing that can be used. Equal answers need no judge."""
    pairs = [
        JudgePair(rollout.messages, first=mine.completion, second=other.completion)
        for rollout, mine, other in zip(
            candidate.rollouts[part], candidate.samples[part], reference.samples[part], strict=True
        )
    ]
    differ = [pair for pair in pairs if pair.first != pair.second]
    answers = iter(judge.judge(differ) if differ else [])
    found: list[Judged | None] = []
    for pair, mine, other in zip(pairs, candidate.samples[part], reference.samples[part], strict=True):
        judgement = Judgement("tie", True) if pair.first == pair.second else next(answers)
        longer = mine.completion_tokens - other.completion_tokens
        found.append(None if judgement is None else (POINTS[judgement.preferred], longer, judgement.consistent))
    return found


def judged_entry(judged: Sequence[Judged]) -> dict[str, Any]:
    """The figures of one candidate; rates are null without judgements."""
    points = [point for point, _, _ in judged]
    entry: dict[str, Any] = {
        "win_rate": statistics.fmean(points) if points else None,
        "length_controlled_win_rate": None,
        "wins": points.count(1.0),
        "losses": points.count(0.0),
        "ties": points.count(0.5),
        "inconsistent": sum(not consistent for _, _, consistent in judged),
        "pairs": len(points),
        "verdict": None,
    }
    if points:
        rate = length_controlled_win_rate(points, [longer for _, longer, _ in judged])
        centred = Interval(rate.mean - 0.5, rate.low - 0.5, rate.high - 0.5)
        entry |= {"length_controlled_win_rate": rate._asdict(), "verdict": verdict(centred, len(points), True)}
    return entry


def length_controlled_win_rate(points: Sequence[float], longer: Sequence[int]) -> Interval:
    """The chance to win at equal length, with its 95 % interval.

    P(win) = sigmoid(skill + pull · tanh(difference in length / its spread)), fitted with one tie at equal length added
    and a standard normal prior on `pull`, so that it stays finite when one side wins everywhere. The interval is
    Wald's on the logit scale; ties make it wider than it need be, never narrower.

    Args:
        points: 1 for a win, 0.5 for a tie, 0 for a loss.
        longer: tokens of the candidate less tokens of the reference.
    """
    spread = math.sqrt(statistics.fmean(value * value for value in longer)) or 1.0
    rows = [*((point, math.tanh(value / spread)) for point, value in zip(points, longer, strict=True)), (0.5, 0.0)]
    skill = pull = 0.0
    for _ in range(FIT_STEPS):
        slope_skill, slope_pull, weight, cross, square = 0.0, -pull, 0.0, 0.0, 1.0
        for point, length in rows:
            chance = _sigmoid(skill + pull * length)
            slope_skill += point - chance
            slope_pull += (point - chance) * length
            information = chance * (1.0 - chance)
            weight += information
            cross += information * length
            square += information * length * length
        determinant = weight * square - cross * cross
        step_skill = (square * slope_skill - cross * slope_pull) / determinant
        step_pull = (weight * slope_pull - cross * slope_skill) / determinant
        damping = min(1.0, 2.0 / max(abs(step_skill), abs(step_pull), 1e-12))  # Newton may leap where it is flat
        skill, pull = skill + damping * step_skill, pull + damping * step_pull
        if max(abs(step_skill), abs(step_pull)) < 1e-9:
            break
    half = Z_95 * math.sqrt(square / determinant)
    return Interval(_sigmoid(skill), _sigmoid(skill - half), _sigmoid(skill + half))


def _sigmoid(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * value))
