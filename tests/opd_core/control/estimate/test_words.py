"""What is said about the two figures: which is likely, which is the bound, what the budget covers."""

from __future__ import annotations

import pytest

from opd_core.config import RunConfig
from opd_core.control.estimate.costs import MethodCost
from opd_core.control.estimate.words import coverage_sentence, paid_notes

DOLLAR = 10**12
COST = MethodCost("coach", "critique", 100, 0, 1, 1, 2.0, 80.0, 80 * DOLLAR, None, None, 0.8, DOLLAR // 10, True)


def config(budget_usd: float = 20.0, **changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {"base_model_path": "base", "prompts_path": "p", "max_budget_usd": budget_usd, **changes}
    )


@pytest.mark.parametrize(
    ("budget_usd", "sentence"),
    [
        (80.0, "The budget of $80.00 covers the run even in the worst case."),
        (
            20.0,
            "The budget of $20.00 covers what is expected, but not the worst case of $80.00, if every answer used its "
            "longest tokens and every reply ran to its limit. Then it covers about 25 % of the calls, and the run "
            "stops and keeps its best adapter.",
        ),
        (
            2.0,
            "The budget of $2.00 covers about 95 % of the calls that are expected; the run then stops and keeps its "
            "best adapter. About $0.10 more would cover the rest, the $0.10 that a usual call holds until it is paid "
            "included.",
        ),
        (
            0.05,
            "The budget of $0.05 is less than the $0.10 that a usual call holds until it is paid: not every call can "
            "be made.",
        ),
    ],
)
def test_what_the_budget_covers_and_what_not(budget_usd: float, sentence: str) -> None:
    assert coverage_sentence(config(budget_usd), COST, int(budget_usd * DOLLAR), 2.0) == sentence


def test_what_is_left_of_the_month_is_called_that() -> None:
    sentence = coverage_sentence(config(20.0), COST, DOLLAR, 2.0)
    assert sentence.startswith("The $1.00 left of this month's budget covers about 45 %")


def test_a_run_that_may_not_call_says_whether_it_will_fail() -> None:
    closed = config(teacher_cache_only=True)
    assert "about 100 replies are not stored: the run will fail" in coverage_sentence(closed, COST, 0, 2.0)


def test_the_notes_say_which_figure_is_likely_and_which_is_a_bound() -> None:
    likely, bound, *rest = paid_notes(config(rollout_max_tokens=64), 128)
    assert "likely" in likely and "a bound and no forecast" in bound
    assert "64 of its longest tokens (128 bytes each in a request, by its tokenizer)" in bound
    assert not any("teacher_batch_api" in note for note in rest)
