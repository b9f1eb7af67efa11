"""`probe_teacher` as a client sees it: what is started, what is fetched, and the answer read aloud."""

from __future__ import annotations

from typing import Any

import pytest

from opd_core.config import RunConfig
from server.arguments.jobs import ProbeArguments
from server.arguments.slim import input_schema
from tests.server.fakes import FakeUseCases, call, data_of, text_of
from tests.server.records import CONFIG, PROBED, completed, make_row, paid


def finished(**changes: Any) -> FakeUseCases:
    row = completed(kind="probe", run_id="prb_1", total_steps=0, **paid(limit=0.5, spent=0.0123), **changes)
    return FakeUseCases(rows=[row], probe=PROBED)


def test_a_finished_probe_says_every_level_the_recommendation_and_the_cost() -> None:
    result = call(finished(), "probe_teacher", CONFIG)
    data, text = data_of(result), text_of(result)
    assert data["summary"] == (
        "By itself the student scores 0 % on 24 held-out prompts. With a few examples in its context it scores 100 %: "
        "better. With a lesson in words it scores 0 %: no difference shown. Not measured: critique. Recommended is "
        "method coach with guidance by examples. The probe cost $0.0123."
    )
    assert (data["method"], data["guidance_level"]) == ("coach", "examples")
    assert "method coach and guidance_level examples" in data["next_step"] and "not paid again" in data["next_step"]
    assert "gap 100 % (100 % to 100 %) over 24 prompts" in text and "the budget is used up" in text
    assert data["levels"][0]["cost_usd"] == 0.004 and data["budget"]["limit_usd"] == 0.5


def test_without_a_gap_contrast_is_recommended_and_no_level() -> None:
    cases = finished()
    cases.probe = {**PROBED, "method": "contrast", "guidance_level": None, "levels": PROBED["levels"][1:]}
    data = data_of(call(cases, "probe_teacher", CONFIG))
    assert "Recommended is method contrast, since no guidance makes this student better" in data["summary"]
    assert "guidance_level" not in data["next_step"]


def test_judged_probes_speak_of_answers_won() -> None:
    cases = finished()
    cases.probe = {**PROBED, "measure": "judgement"}
    assert "its answers win 100 %" in data_of(call(cases, "probe_teacher", CONFIG))["summary"]


def test_the_run_arguments_are_checked_and_handed_on_without_the_tools_own() -> None:
    cases = finished()
    data_of(call(cases, "probe_teacher", {**CONFIG, "seed": 7, "timeout_seconds": 5}))
    verb, config = cases.asked[0]
    assert verb == "start_probe" and isinstance(config, RunConfig) and config.seed == 7


def test_fetching_by_job_starts_no_other_probe() -> None:
    cases = finished()
    data_of(call(cases, "probe_teacher", {"job_id": "prb_1"}))
    assert "start_probe" not in [asked[0] for asked in cases.asked]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"job_id": "prb_1", **CONFIG}, "leave out base_model_path"),
        ({}, "base_model_path is missing"),
        ({**CONFIG, "learnin_rate": 1}, "did you mean 'learning_rate'"),
        ({**CONFIG, "timeout_seconds": "20"}, "timeout_seconds is the text '20'"),
    ],
)
def test_wrong_arguments_are_refused_in_our_words(arguments: dict[str, Any], told: str) -> None:
    cases = finished()
    result = call(cases, "probe_teacher", arguments)
    assert result.is_error and told in text_of(result) and cases.asked == []


def test_a_probe_at_work_says_how_to_fetch_it() -> None:
    cases = FakeUseCases(rows=[make_row(kind="probe", run_id="prb_1", total_steps=0, step=0)])
    data = data_of(call(cases, "probe_teacher", {"job_id": "prb_1", "timeout_seconds": 0}))
    assert data["status"] == "pending" and "probe_teacher with job_id prb_1" in data["next_step"]


def test_a_probe_whose_budget_ended_before_its_result_says_so() -> None:
    end = {"state": "stopped", "end_reason": "budget", "budget_exceeded": True}
    row = make_row(kind="probe", run_id="prb_1", total_steps=0, **end, **paid(limit=0.01, spent=0.0099))
    cases = FakeUseCases(rows=[row])
    data = data_of(call(cases, "probe_teacher", {"job_id": "prb_1"}))
    assert data["status"] == "failed" and "budget of $0.01 is used up" in data["summary"]
    assert "larger max_budget_usd" in data["next_step"]


def test_the_schema_has_every_field_of_a_run_and_describes_only_its_own() -> None:
    schema = input_schema(ProbeArguments)
    assert set(schema["properties"]) == {"job_id", "timeout_seconds"} | set(RunConfig.model_fields)
    assert schema["required"] == [] and schema["additionalProperties"] is False
    assert "description" in schema["properties"]["job_id"] and "description" not in schema["properties"]["seed"]
    assert "description" in input_schema(RunConfig)["properties"]["seed"]
