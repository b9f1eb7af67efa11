"""The diagnosis: each rule speaks at its threshold and not just below it, and a healthy run is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.control.diagnosis.diagnosing import diagnose
from opd_core.control.evidence import RunEvidence
from opd_core.types import RunState
from tests.opd_core.control.runs_seen import STEPS, eval_lines, seen, train_lines
from tests.server.records import paid

FLAT_KL = {"kl_divergence_mean": 1.0}


def falling(middle: float, last: float) -> list[float]:
    """A reverse KL that falls from 1 to `middle` in the first third, and is `last` in the last one."""
    third = STEPS // 3
    first = [1.0 - (1.0 - middle) * index / third for index in range(third)]
    return first + [middle] * (STEPS - 2 * third) + [last] * third


def rising(share: float) -> list[float]:
    """First fifth at 1, last at `share`."""
    return [1.0] * 10 + [(1.0 + share) / 2] * 30 + [share] * 10


def skipping(steps: int, **values: Any) -> list[dict[str, Any]]:
    return [
        line | ({"update_skipped": True} | values if index < steps else {}) for index, line in enumerate(train_lines())
    ]


def stuck(age: float, seconds: float, state: RunState = "running") -> RunEvidence:
    return seen(train_lines(step_seconds=seconds), state=state, end_reason=None, step=12, heartbeat_age_seconds=age)


def spending(spent: float, step: int, **row: Any) -> RunEvidence:
    money = paid(limit=1.0, spent=spent)
    usual: dict[str, Any] = {"state": "running", "end_reason": None}
    return seen(config={"teacher_kind": "claude"}, step=step, **{**usual, **money, **row})


NO_BETTER = eval_lines(0.4, 0.3, 0.3)
CASES: dict[str, tuple[RunEvidence, RunEvidence]] = {
    "failed": (
        seen(state="failed", end_reason="error", error_message="The disk is full."),
        seen(state="stopped", end_reason="by_user"),
    ),
    "stalled": (stuck(601.0, 2.0), stuck(600.0, 2.0)),
    "not_finite": (
        seen(skipping(1, total_loss=None)),
        seen(skipping(1, total_loss=0.0, gradient_norm=0.0)),
    ),
    "budget_starved": (spending(0.51, 15), spending(0.5, 15)),
    "waiting": (
        seen(state="waiting", end_reason=None, waiting_reason="the rate limit", wake_at="2026-11-23T13:00:00Z"),
        seen(state="running", end_reason=None),
    ),
    "repetition": (seen(train_lines(repetition_rate=0.31)), seen(train_lines(repetition_rate=0.3))),
    "truncation": (seen(train_lines(truncation_rate=0.5)), seen(train_lines(truncation_rate=0.49))),
    "length_inflation": (
        seen(evals=eval_lines(0.2, 0.4, 0.6, completion_tokens_mean=[40.0, 50.0, 60.0])),
        seen(evals=eval_lines(0.2, 0.4, 0.6, completion_tokens_mean=[40.0, 50.0, 59.9])),
    ),
    "entropy_collapse": (
        seen(train_lines(student_entropy=[1.0] * 40 + [0.49] * 10), eval_lines(0.4, 0.4)),
        seen(train_lines(student_entropy=[1.0] * 40 + [0.5] * 10), eval_lines(0.4, 0.4)),
    ),
    "diverging": (
        seen(train_lines(kl_divergence_mean=rising(1.5))),
        seen(train_lines(kl_divergence_mean=rising(1.49))),
    ),
    "no_teacher_headroom": (
        seen(evals=eval_lines(0.2, 0.4, 0.6, teacher_agreement_pct=[98.0, 99.0, 99.0])),
        seen(evals=eval_lines(0.2, 0.4, 0.6, teacher_agreement_pct=[97.9, 99.0, 99.0])),
    ),
    "learning_rate_too_high": (
        seen(evals=eval_lines(0.4, 0.4), config={"learning_rate": 6e-4}),
        seen(evals=eval_lines(0.4, 0.4), config={"learning_rate": 5e-4}),
    ),
    "learning_rate_too_low": (
        seen(train_lines(kl_divergence_mean=[1.0] * 40 + [0.91] * 10), config={"learning_rate": 1e-5}),
        seen(train_lines(kl_divergence_mean=[1.0] * 40 + [0.899] * 10), config={"learning_rate": 1e-5}),
    ),
    "kl_plateau": (
        seen(train_lines(kl_divergence_mean=falling(0.4, 0.393))),
        seen(train_lines(kl_divergence_mean=falling(0.4, 0.391))),
    ),
    "no_improvement": (seen(evals=NO_BETTER), seen(evals=eval_lines(0.4, 0.3))),
    "few_held_out": (
        seen(evals=eval_lines(0.2, 0.4, 0.6, held_out_prompts=19)),
        seen(evals=eval_lines(0.2, 0.4, 0.6, held_out_prompts=20)),
    ),
    "best_was_earlier": (seen(evals=eval_lines(0.2, 0.6, 0.5)), seen(evals=eval_lines(0.2, 0.6, 0.6))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_at_its_threshold_and_it_alone(name: str) -> None:
    found = diagnose(CASES[name][0])
    assert [finding.name for finding in found.findings] == [name]
    assert found.verdict == name and found.summary and all(finding.evidence for finding in found.findings)


@pytest.mark.parametrize("name", CASES)
def test_just_below_the_threshold_nothing_is_said(name: str) -> None:
    assert diagnose(CASES[name][1]).findings == ()


@pytest.mark.parametrize("name", CASES)
def test_what_is_suggested_are_fields_of_a_configuration_with_values_it_takes(name: str) -> None:
    suggestions = diagnose(CASES[name][0]).suggestions
    assert suggestions or name == "waiting"
    for suggestion in suggestions:
        assert suggestion.settings.keys() <= RunConfig.model_fields.keys()
        for field, value in suggestion.settings.items():
            said = suggestion.change
            assert field in said and any(text in said for text in (f"{value:g}", str(value).lower(), f"{value:.2f}"))
        parse_config({"base_model_path": "m", "prompts_path": "p", **suggestion.settings})


@pytest.mark.parametrize(
    ("given", "change", "why"),
    [
        (("prompts_path",), "Give a validation_prompts_path with", "a fifth of the training file is held out"),
        (("validation_prompts_path",), "Give a prompts_path for training, and", "the only one given, so it was split"),
        (("prompts_path", "validation_prompts_path"), "Give a validation_prompts_path with", "it has no more"),
    ],
)
def test_few_held_out_prompts_are_explained_by_the_files_that_were_given(
    given: tuple[str, ...], change: str, why: str
) -> None:
    files = dict.fromkeys(("prompts_path", "validation_prompts_path")) | dict.fromkeys(given, "file.jsonl")
    (suggestion,) = diagnose(seen(evals=eval_lines(0.2, 0.4, 0.6, held_out_prompts=19), config=files)).suggestions
    assert suggestion.change.startswith(change) and why in suggestion.why


def test_a_run_that_got_better_is_healthy_and_its_gain_is_said() -> None:
    found = diagnose(seen())
    assert found.verdict == "healthy" and "task score from 20.0% to 60.0%" in found.summary


def test_a_run_that_has_hardly_begun_is_not_judged() -> None:
    assert diagnose(seen(train_lines(4), eval_lines(0.2), state="running", end_reason=None)).verdict == "too_early"
    assert diagnose(seen([], [], state="running", end_reason=None)).verdict == "too_early"


def test_few_steps_are_noise_and_no_series_is_judged_by_them() -> None:
    assert diagnose(seen(train_lines(9, repetition_rate=0.9, truncation_rate=0.9))).findings == ()
    assert diagnose(seen(train_lines(10, repetition_rate=0.9, truncation_rate=0.9))).findings != ()


def test_the_gravest_finding_is_the_verdict_and_the_others_stand_beside_it() -> None:
    found = diagnose(seen(train_lines(repetition_rate=0.5), eval_lines(0.2, 0.6, 0.5, held_out_prompts=10)))
    assert found.verdict == "repetition"
    assert [finding.name for finding in found.findings] == ["repetition", "few_held_out", "best_was_earlier"]


def test_entropy_that_falls_as_the_student_becomes_right_is_no_collapse() -> None:
    collapsed = train_lines(student_entropy=[1.0] * 40 + [0.1] * 10)
    assert diagnose(seen(collapsed)).findings == ()


def test_a_larger_batch_is_suggested_as_twice_the_runs_own() -> None:
    found = diagnose(seen(train_lines(kl_divergence_mean=rising(1.5)), config={"batch_size": 16}))
    (larger,) = [each for each in found.suggestions if "batch_size" in each.settings]
    assert larger.settings == {"batch_size": 32} and "batch_size 32" in larger.change


def test_a_reverse_kl_that_is_as_small_as_rounding_is_no_plateau_and_no_divergence() -> None:
    assert diagnose(seen(train_lines(kl_divergence_mean=falling(0.009, 0.009)))).findings == ()
    tiny = train_lines(kl_divergence_mean=[0.001] * 25 + [0.009] * 25)
    assert diagnose(seen(tiny)).findings == ()


def test_a_divergence_that_is_the_primary_metric_is_better_when_it_is_smaller() -> None:
    lines = eval_lines(0.2, 0.2, 0.2, primary_metric="reverse_kl", reverse_kl=[0.8, 0.3, 0.5])
    (found,) = diagnose(seen(evals=lines)).findings
    assert found.name == "best_was_earlier" and "step 25" in found.sentence


def test_a_teacher_that_scores_no_better_than_the_student_did_has_nothing_to_teach() -> None:
    comparison = {"teacher": {"task_score": {"mean": 0.2}}}
    assert diagnose(seen(comparison=comparison)).verdict == "no_teacher_headroom"
    comparison = {"teacher": {"task_score": {"mean": 0.21}}}
    assert diagnose(seen(comparison=comparison)).verdict == "healthy"


def test_a_check_that_not_even_the_teacher_passes_is_doubted_first() -> None:
    found = diagnose(seen(evals=eval_lines(0.0, 0.1), comparison={"teacher": {"task_score": {"mean": 0.0}}}))
    assert "correct check and extractor" in found.suggestions[0].change


def test_the_best_step_is_the_one_that_was_kept_also_when_several_are_as_good() -> None:
    (found,) = diagnose(seen(evals=eval_lines(0.2, 0.6, 0.6, 0.5), best_step=50)).findings
    assert "step 50" in found.sentence
    (found,) = diagnose(seen(evals=eval_lines(0.0, 0.0, 0.0), best_step=50)).findings
    assert found.name == "no_improvement" and "that of step 50" in found.sentence
    (found,) = diagnose(seen(evals=eval_lines(0.4, 0.1, 0.1), best_step=0)).findings
    assert "the one the run began with" in found.sentence


def test_pairs_that_are_nearly_all_equal_leave_nothing_to_learn() -> None:
    lines = train_lines(pairs_equal=9.0, pairs_compared=1.0)
    assert diagnose(seen(lines)).verdict == "no_teacher_headroom"
    assert diagnose(seen(train_lines(pairs_equal=8.9, pairs_compared=1.1))).verdict == "healthy"


def test_a_run_that_died_is_told_how_to_go_on_and_one_that_diverged_to_start_slower() -> None:
    died = diagnose(seen(state="interrupted", end_reason="worker_died"))
    assert died.verdict == "failed" and "resume_distillation with run_id opd_1" in died.suggestions[0].change
    message = "The loss was not finite for 3 steps in a row, up to step 9."
    diverged = diagnose(seen(state="failed", end_reason="diverged", error_message=message))
    assert diverged.suggestions[0].settings["learning_rate"] == pytest.approx(3.3e-5)


def test_an_error_message_is_escaped_and_capped() -> None:
    found = diagnose(seen(state="failed", end_reason="error", error_message="\x1b[31m" + "x" * 5000))
    assert "\x1b" not in found.summary and len(found.summary) < 1000


def test_a_budget_that_ended_the_run_names_the_budget_that_would_have_been_enough() -> None:
    found = diagnose(spending(1.0, 10, state="stopped", end_reason="budget", budget_exceeded=True))
    (finding,) = found.findings
    assert finding.sentence.startswith("The budget ended the run")
    assert finding.suggestions[0].settings == {"max_budget_usd": 3.6}  # 1.0 / 10 × 30 steps × 1.2


def test_a_frozen_budget_needs_a_person() -> None:
    found = diagnose(spending(0.1, 10, frozen_budgets=("opd_1",)))
    assert found.findings[0].severity == "stops" and "opd unfreeze opd_1" in found.suggestions[0].change


def test_slow_steps_are_given_more_time_before_a_run_counts_as_stalled() -> None:
    assert diagnose(stuck(1_000.0, 300.0)).findings == ()
    assert diagnose(stuck(1_501.0, 300.0)).verdict == "stalled"
