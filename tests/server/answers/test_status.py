"""Statuses in words: each state, rounding, escaping, time left, budget."""

from __future__ import annotations

import math
from typing import Any

import pytest

from opd_core.types import RunState
from server.answers.budgets import dollars
from server.answers.figures import seconds_left
from server.answers.sentences import progress_line
from server.answers.status import run_status
from server.answers.words import duration, moment, tidy
from tests.server.records import BASELINE, completed, make_row, paid


@pytest.mark.parametrize(
    ("state", "said", "next_call"),
    [
        ("queued", "waits in the queue at position 3", "wait_for_run"),
        ("preparing", "is being prepared (rollout)", "wait_for_run"),
        ("running", "is running at step 12 of 30 (rollout), about 3 minutes left", "wait_for_run"),
        ("waiting", "waits: disk is full, until 13:00 UTC on 23 November. It goes on by itself.", "wait_for_run"),
        ("stopping", "is stopping at step 12 of 30", "wait_for_run"),
        ("completed", "completed at step 12 of 30", "compare_adapters"),
        ("stopped", "stopped at step 12 of 30 (by user)", "resume_distillation"),
        ("failed", "failed at step 12 of 30: no memory", "resume_distillation"),
        ("interrupted", "was interrupted at step 12 of 30", "resume_distillation"),
    ],
)
def test_each_state_is_said_in_words_with_the_next_call(state: RunState, said: str, next_call: str) -> None:
    extra: dict[str, Any] = {"queue_position": 3, "waiting_reason": "disk is full", "wake_at": "2026-11-23T13:00:00Z"}
    row = make_row(state=state, end_reason="by_user", error_message="no memory", **extra)
    status = run_status(row)
    assert said in status.summary
    assert next_call in status.next_step and row.run_id in status.next_step


def test_a_completed_run_tells_what_was_gained_on_held_out_prompts() -> None:
    summary = run_status(completed()).summary
    assert "reverse KL 0.83 to 0.031 nats a token and task score 0 % to 97.5 %" in summary


def test_a_run_without_a_better_evaluation_says_so() -> None:
    assert "no later evaluation" in run_status(completed(best_eval=BASELINE)).summary


def test_a_comparison_points_to_its_result() -> None:
    status = run_status(completed(kind="comparison", run_id="cmp_1", total_steps=0, best_eval=None, baseline_eval=None))
    assert status.summary == "Comparison cmp_1 completed."
    assert "job_id cmp_1" in status.next_step


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 180.0),
        ({"steps_per_second": None}, None),
        ({"steps_per_second": 0.0}, None),
        ({"state": "completed"}, 0.0),
        ({"step": 30}, None),
    ],
)
def test_time_left_is_known_only_while_steps_are_measured(changes: dict[str, Any], expected: float | None) -> None:
    assert seconds_left(make_row(**changes)) == expected


@pytest.mark.parametrize(("spent", "reserved", "expected"), [(7.9, 0.0, False), (7.0, 1.0, True), (10.0, 0.0, True)])
def test_budget_is_warned_of_at_four_fifths_spent_or_reserved(spent: float, reserved: float, expected: bool) -> None:
    status = run_status(make_row(**paid(limit=10.0, spent=spent, reserved=reserved)))
    assert status.budget_warning is expected and ("Four fifths" in status.summary) is expected
    assert status.budget is not None and status.budget.left_usd == pytest.approx(10.0 - spent - reserved)
    assert not status.budget_exceeded


def test_a_run_that_costs_nothing_speaks_of_no_money() -> None:
    status = run_status(completed())
    assert status.budget is None and not status.budget_warning and "$" not in status.summary


def stopped_for(message: str = "", **changes: Any) -> Any:
    end = {"state": "stopped", "end_reason": "budget", "budget_exceeded": True, "final_adapter_path": "/a"}
    return make_row(**{**paid(), **end, "message": message, **changes})


def test_a_run_that_used_up_its_budget_says_how_to_go_on() -> None:
    hits = {"step": 12, "teacher_api_calls": 30, "teacher_cache_hits": 12}
    status = run_status(stopped_for(latest_metrics=hits, **paid(limit=0.05, spent=0.0491)))
    assert status.summary == (
        "Run opd_1 stopped at step 12 of 30 because its budget of $0.05 is used up: the next call could cost more than "
        "is left; the best adapter so far is kept. It has spent $0.0491 of its budget of $0.05; 12 answers came from "
        "the cache for nothing."
    )
    assert status.budget_exceeded and "Ask the user" in status.next_step
    assert "resume_distillation with run_id opd_1, a larger max_budget_usd and confirmed=true" in status.next_step


def test_a_budget_that_ends_before_anything_was_trained_promises_no_adapter() -> None:
    status = run_status(stopped_for(final_adapter_path=None, **paid(limit=0.05, spent=0.049)))
    assert "nothing was trained yet" in status.summary and "the adapter that is kept" not in status.next_step


def test_a_months_budget_and_a_freeze_are_told_apart_from_the_runs_own() -> None:
    month = run_status(stopped_for("... only a person can raise it: opd set-month --to-usd DOLLARS --why TEXT"))
    assert "for the month is used up" in month.summary and "opd set-month" in month.next_step
    freeze: dict[str, Any] = {"stopped_by_freeze": True, "budget_exceeded": False}
    frozen = run_status(stopped_for(frozen_budgets=("month:2026-11", "opd_1"), **freeze))
    assert "frozen" in frozen.summary and "used up" not in frozen.summary and "usage page" in frozen.next_step
    assert "`opd unfreeze month:2026-11 --why TEXT` and `opd unfreeze opd_1 --why TEXT`" in frozen.next_step
    assert frozen.budget is not None and frozen.budget.frozen and not frozen.budget_exceeded
    lifted = run_status(stopped_for(**freeze))
    assert "frozen" in lifted.summary and "has lifted the freeze. Call resume_distillation" in lifted.next_step
    for status in (month, frozen, lifted):
        assert "larger max_budget_usd" not in status.next_step


def test_a_freeze_that_came_later_is_not_why_a_run_had_stopped() -> None:
    status = run_status(stopped_for(frozen_budgets=("month:2026-11",)))
    assert "is used up" in status.summary and "opd unfreeze month:2026-11" in status.next_step


def test_a_comparison_without_money_asks_for_the_budget_it_has() -> None:
    row = stopped_for(kind="comparison", run_id="cmp_1", total_steps=0, final_adapter_path=None, **paid(limit=0.01))
    assert "compare_adapters again, a larger judge_budget_usd" in run_status(row).next_step


def test_a_refusal_of_the_provider_is_not_resumed_as_it_is() -> None:
    status = run_status(stopped_for(end_reason="teacher_refused"))
    assert "refuses to help" in status.summary and "Do not resume" in status.next_step


def test_a_probe_that_ran_out_of_money_is_asked_for_again() -> None:
    row = stopped_for(kind="probe", run_id="prb_1", total_steps=0, final_adapter_path=None, **paid(limit=0.01))
    status = run_status(row)
    assert status.summary.startswith("Probe prb_1 stopped because its budget of $0.01 is used up: ")
    assert "it has no result" in status.summary
    assert "probe_teacher again, a larger max_budget_usd" in status.next_step


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0.0, "$0.00"),
        (0.00001, "less than $0.0001"),
        (0.0312, "$0.0312"),
        (0.5, "$0.50"),
        (4.567, "$4.57"),
        (1234.5, "$1,234.50"),
        (0.99996, "$1.00"),
        (None, "an unknown amount"),
    ],
)
def test_amounts_have_cents_and_small_ones_are_seen(amount: float | None, words: str) -> None:
    assert dollars(amount) == words


def test_a_moment_is_said_for_the_ear_and_a_strange_one_as_it_is() -> None:
    assert moment("2026-11-03T07:05:00.000Z") == "07:05 UTC on 3 November"
    assert moment("soon") == "soon"


def test_numbers_are_rounded_and_infinities_become_null() -> None:
    assert tidy({"a": 0.123456, "b": math.inf, "c": [math.nan, 123456.7], "d": 10**12, "e": True}) == {
        "a": 0.1235,
        "b": None,
        "c": [None, 123500.0],
        "d": 10**12,
        "e": True,
    }


def test_control_characters_are_escaped_and_long_texts_cut() -> None:
    assert tidy("a\x1b[31m\u202e", 100) == "a\\x1b[31m\\u202e"
    assert tidy("x" * 50, 10).startswith("x" * 10 + "…")


def test_progress_lines_are_short() -> None:
    assert (
        progress_line(make_row(phase="p" * 500)).startswith("step 12 of 30")
        and len(progress_line(make_row(phase="p" * 500))) <= 200
    )
    assert progress_line(make_row(total_steps=0, state="preparing", phase=None, latest_metrics=None)) == "preparing"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "an unknown time"),
        (0, "about a second"),
        (45, "about 45 seconds"),
        (266, "about 4 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_durations_are_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words
