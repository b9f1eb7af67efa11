"""Statuses in words: each state, rounding, escaping, time left, budget."""

from __future__ import annotations

import math
from typing import Any

import pytest

from opd_core.types import RunState
from server.present import budget_flags, duration, progress_line, run_status, seconds_left, tidy
from tests.server.records import BASELINE, completed, make_row


@pytest.mark.parametrize(
    ("state", "said", "next_call"),
    [
        ("queued", "waits in the queue at position 3", "wait_for_run"),
        ("preparing", "is being prepared (rollout)", "wait_for_run"),
        ("running", "is running at step 12 of 30 (rollout), about 3 minutes left", "wait_for_run"),
        ("waiting", "waits: disk is full, until 2026-11-23T13:00:00Z", "wait_for_run"),
        ("stopping", "is stopping at step 12 of 30", "wait_for_run"),
        ("completed", "completed at step 12 of 30", "compare_adapters"),
        ("stopped", "was stopped at step 12 of 30 (by user)", "resume_distillation"),
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


@pytest.mark.parametrize(
    ("spent", "reason", "expected"),
    [
        (7.9, None, (False, False)),
        (8.0, None, (True, False)),
        (9.9, "budget", (True, True)),
        (0.0, None, (False, False)),
    ],
)
def test_budget_is_warned_of_at_four_fifths(spent: float, reason: str | None, expected: tuple[bool, bool]) -> None:
    row = make_row(latest_metrics={"cumulative_cost_usd": spent}, end_reason=reason)
    assert budget_flags(row) == expected


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
