"""Arguments: what is refused and how it is said, and the schemas that callers see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from opd_core.config import RunConfig
from opd_core.errors import ConfigError
from server.arguments.jobs import CompareArguments
from server.arguments.parsing import parse_arguments
from server.arguments.runs import ListRunsArguments, MetricsArguments, StopArguments, WaitArguments
from server.arguments.slim import input_schema, slim
from tests.server.fakes import ERAS, Era, FakeUseCases, call, data_of, text_of
from tests.server.records import make_row

GOOD: dict[str, Any] = {"base_model_path": "tiny", "prompts_path": "/p.txt"}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("get_status", {"runid": "x"}, "did you mean 'run_id'"),
        ("get_status", {"run_id": 7}, "run_id is 7"),
        ("wait_for_run", {"timeout_seconds": "20"}, "timeout_seconds is the text '20'"),
        ("wait_for_run", {"timeout_seconds": -1}, "timeout_seconds is -1"),
        ("get_metrics", {"series": "loss"}, "it must be 'train' or 'eval'"),
        ("list_runs", {"limit": 0}, "limit is 0"),
        ("resume_distillation", {"confirmed": "yes"}, "confirmed is the text 'yes'"),
        ("compare_adapters", {"candidates": [{"path": "/a"}]}, "candidates.0"),
        ("compare_adapters", {"judge": True}, "judge true needs judge_budget_usd: ask the user"),
        ("compare_adapters", {"judge_budget_usd": 1.0}, "give judge true"),
        ("start_distillation", {**GOOD, "learnin_rate": 1}, "did you mean 'learning_rate'"),
        ("start_distillation", {**GOOD, "max_budget_usd": -1}, "max_budget_usd is -1"),
        ("estimate_cost", {**GOOD, "batch_size": "four"}, "batch_size is the text 'four'"),
        ("estimate_cost", {"prompts_path": "/p.txt"}, "base_model_path is missing"),
    ],
)
def test_a_wrong_argument_is_refused_in_our_words(tool: str, arguments: dict[str, Any], told: str, era: Era) -> None:
    cases = FakeUseCases(rows=[make_row()])
    result = call(cases, tool, arguments, era)
    text = text_of(result)
    assert result.is_error and told in text and text.startswith(f"{tool} was not called.")
    assert "pydantic" not in text and "validation error" not in text
    assert cases.asked == []


@pytest.mark.parametrize("era", ERAS)
def test_an_unknown_tool_is_refused_with_the_near_one(era: Era) -> None:
    result = call(FakeUseCases(), "get_statos", era=era)
    assert result.is_error and "Did you mean get_status?" in text_of(result)


def test_all_problems_of_a_configuration_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"2 problems.*seed.*batch_sise"):
        parse_arguments(RunConfig, {**GOOD, "seed": "x", "batch_sise": 3})


def test_a_list_sent_as_json_inside_a_text_is_understood() -> None:
    examples = [{"prompt": "a", "completion": "b"}]
    config = parse_arguments(RunConfig, {**GOOD, "teacher_examples": json.dumps(examples)})
    assert isinstance(config, RunConfig) and config.teacher_examples[0].completion == "b"


def test_a_text_that_looks_like_json_stays_a_text_where_texts_are_allowed() -> None:
    config = parse_arguments(RunConfig, {**GOOD, "teacher_system_prompt": '{"reply": "as JSON"}'})
    assert isinstance(config, RunConfig) and config.teacher_system_prompt == '{"reply": "as JSON"}'


def test_broken_json_inside_a_text_is_told() -> None:
    with pytest.raises(ConfigError, match="teacher_examples is a text that is not valid JSON"):
        parse_arguments(RunConfig, {**GOOD, "teacher_examples": "[{]"})


def test_a_whole_number_is_allowed_where_a_number_is() -> None:
    wait = parse_arguments(WaitArguments, {"timeout_seconds": 30})
    assert isinstance(wait, WaitArguments) and wait.timeout_seconds == 30


def test_run_id_may_be_left_out_everywhere() -> None:
    for model in (WaitArguments, MetricsArguments, StopArguments, ListRunsArguments, CompareArguments):
        assert "run_id" not in input_schema(model).get("required", [])


def test_the_schema_has_every_field_of_the_configuration() -> None:
    schema = input_schema(RunConfig)
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["required"] == ["base_model_path"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["lora_rank"]["type"] == "integer"


def test_slimming_keeps_a_property_that_is_named_like_a_keyword() -> None:
    schema = {"title": "T", "properties": {"title": {"title": "Title", "type": "string"}, "default": {"type": "null"}}}
    assert slim(schema, {}) == {"properties": {"title": {"type": "string"}, "default": {"type": "null"}}}


def test_the_call_reaches_the_use_case_with_the_parsed_values() -> None:
    cases = FakeUseCases(rows=[make_row()])
    data_of(call(cases, "stop_distillation", {"run_id": "opd_1", "timeout_seconds": 3600}))
    assert cases.asked == [("stop", "opd_1", 0.0)]
