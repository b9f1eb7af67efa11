"""What every chat carries of the tools: small, and still enough to call them and to check their answers."""

from __future__ import annotations

import json
from typing import Any

import anyio
import jsonschema
import pytest
from mcp.client import Client

from opd_core.config import RunConfig
from server.app import server_for
from server.arguments.slim import input_schema
from server.protocol.tool_schemas import DESCRIBED_BY_START, offered_input, offered_output
from server.verbs import VERBS
from tests.server.fakes import ERAS, Era, FakeUseCases

MAX_LIST_BYTES = 39_000


@pytest.mark.parametrize("era", ERAS)
def test_the_list_of_tools_is_small(era: Era) -> None:
    async def go() -> int:
        async with Client(server_for(FakeUseCases()), mode=era) as client:
            listed = await client.list_tools()
            return len(listed.model_dump_json(by_alias=True, exclude_none=True).encode())

    assert anyio.run(go) < MAX_LIST_BYTES


def test_start_describes_every_field_of_a_run() -> None:
    offered = offered_input("start_distillation", RunConfig)["properties"]
    full = input_schema(RunConfig)["properties"]
    assert {name: field["description"] for name, field in offered.items()} == {
        name: field["description"] for name, field in full.items()
    }
    assert offered["method"]["enum"] == full["method"]["enum"] and offered["kl_weight"]["default"] == 1.0
    assert "kind" in json.dumps(offered["check"]), "how an answer is scored is told in full"


@pytest.mark.parametrize("name", sorted(DESCRIBED_BY_START))
def test_the_tools_that_take_a_runs_fields_name_all_of_them_with_their_types(name: str) -> None:
    offered, start = offered_input(name, VERBS[name].arguments), offered_input("start_distillation", RunConfig)
    assert set(RunConfig.model_fields) <= set(offered["properties"]) and offered["additionalProperties"] is False
    for field, schema in start["properties"].items():
        kind = offered["properties"][field]
        assert kind["type"] == schema.get("type", "object") and kind.get("enum") == schema.get("enum")
        assert "description" not in kind


EXAMPLE: dict[str, Any] = {
    "base_model_path": "tiny",
    "prompts_path": "/p.txt",
    "teacher_examples": [{"prompt": "a", "completion": "b"}],
    "lora_keys": ["self_attn.q_proj"],
    "check": {"kind": "reference"},
    "learning_rate": 1e-4,
    "use_dora": True,
}


@pytest.mark.parametrize("name", ["start_distillation", *sorted(DESCRIBED_BY_START)])
def test_a_good_call_fits_the_offered_schema_and_a_wrong_one_does_not(name: str) -> None:
    schema = offered_input(name, VERBS[name].arguments)
    jsonschema.validate(EXAMPLE, schema)
    for wrong in ({"learning_rate": "small"}, {"method": "magic"}, {"unknown": 1}, {"lora_keys": "q_proj"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(EXAMPLE | wrong, schema)


def test_bounds_that_matter_are_told_and_those_that_nobody_crosses_are_not() -> None:
    offered = offered_input("list_runs", VERBS["list_runs"].arguments)["properties"]["limit"]
    assert offered["maximum"] == 20 and "minimum" not in offered
    steps = offered_input("start_distillation", RunConfig)["properties"]["num_training_steps"]
    assert "maximum" not in steps and "minimum" not in steps


@pytest.mark.parametrize("name", VERBS)
def test_an_answers_schema_has_its_fields_that_are_never_null(name: str) -> None:
    model = VERBS[name].answer
    schema = offered_output(model)
    assert {"summary", "next_step"} <= set(schema["properties"]) <= set(model.model_fields)
    for field in schema["properties"].values():
        assert field["type"] in ("string", "integer", "number", "boolean", "object", "array")
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"summary": 1, "next_step": "x"}, schema)
