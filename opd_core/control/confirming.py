"""When a person must have agreed before money may be spent: one rule, asked by every way in.

What a job may spend at most is its budget. A budget above one dollar needs the user's yes: `confirmed` with the
arguments, or the answer to a question that the front door puts to the user. Up to one dollar the budget itself is
agreement enough, and a free run can be stopped at any time, so neither is asked about; the month's limit holds anyway.
A larger budget for a run that has one is always asked about.
"""

from __future__ import annotations

from typing import Literal

from opd_core.comparison import ComparisonSpec
from opd_core.control.estimate.estimating import completion_length
from opd_core.control.estimate.paid import estimate_paid
from opd_core.control.preflight.checking import Preflight
from opd_core.errors import ConfirmationNeededError
from opd_core.money.amounts import format_usd, pico_from_usd
from opd_core.settings import Settings
from opd_core.state.rows import RunRow
from opd_core.types import clean_text

UNASKED_USD = 1.0
"""The largest budget that is spent without asking."""


def require_start(found: Preflight, kind: Literal["distillation", "probe"], settings: Settings) -> None:
    """Let a checked run or probe pass, or ask.

    Raises:
        ConfirmationNeededError: it may spend more than UNASKED_USD and nobody said that the user agreed.
    """
    config = found.config
    spends = config.teacher_kind == "claude" and not config.teacher_cache_only
    if not spends or config.confirmed or config.max_budget_usd <= UNASKED_USD:
        return
    length, _ = completion_length(config, found.prompts.train)
    paid = estimate_paid(found, settings, length)
    expected, worst = paid.pays_usd, paid.pays_at_most_usd
    job = "this distillation run"
    if kind == "probe":
        job = "this probe of the teacher"
        probe = next(method for method in paid.methods if method.method == "probe")
        expected, worst = probe.expected_usd, probe.worst_usd
    raise ConfirmationNeededError(
        f"Start {job} with the paid teacher {clean_text(paid.model, 80)}? It may spend up to "
        f"{_usd(config.max_budget_usd)} (its budget). Expected: {_usd(expected)}; all planned calls at their dearest: "
        f"{_usd(worst)}."
    )


def require_judge(spec: ComparisonSpec, confirmed: bool) -> None:
    """The same for a comparison's judge.

    Raises:
        ConfirmationNeededError: as `require_start`.
    """
    budget = spec.judge_budget_usd or 0.0
    if not spec.judge or confirmed or budget <= UNASKED_USD:
        return
    judge = f"the paid judge {clean_text(spec.judge_model_id, 80)}" if spec.judge_model_id else "a paid judge"
    raise ConfirmationNeededError(
        f"Start this comparison with {judge}? It may spend up to {_usd(budget)} (its budget): each held-out prompt "
        f"takes two calls for each of {len(spec.candidates) - 1} candidates beside the reference."
    )


def require_raise(row: RunRow, budget_usd: float, confirmed: bool) -> None:
    """The same for a resume that may spend more than the run was given.

    Raises:
        ConfirmationNeededError: the budget grows and nobody said that the user agreed.
    """
    before = float(row.config["max_budget_usd"])
    if confirmed or budget_usd <= before:
        return
    raise ConfirmationNeededError(
        f"Resume {row.run_id} with a larger budget? Its max_budget_usd would rise from {_usd(before)} to "
        f"{_usd(budget_usd)}."
    )


def _usd(amount: float) -> str:
    return format_usd(pico_from_usd(amount))
