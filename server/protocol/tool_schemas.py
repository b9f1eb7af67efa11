"""The schemas as `tools/list` shows them: every chat of every host carries them, so they say only what helps to call.

The models check more than the schemas tell, and their errors name every bound. The full schemas of all answers are
in `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from opd_core.config import RunConfig
from server.arguments.slim import input_schema

DESCRIBED_BY_START = frozenset({"estimate_cost", "probe_teacher"})
"""Tools that take the fields of a run too: names and types are enough there."""
IDLE_BELOW, IDLE_ABOVE = 1, 1_000
"""A lower bound up to the one and an upper bound from the other are not worth telling: nobody crosses them."""

Schema = dict[str, Any]


@cache
def offered_input(name: str, model: type[BaseModel]) -> Schema:
    """The arguments of one tool."""
    schema = input_schema(model)
    properties = schema["properties"]
    if name in DESCRIBED_BY_START:
        run = RunConfig.model_fields
        properties = {key: _kind(value) if key in run else value for key, value in properties.items()}
    offered: Schema = _without_idle_bounds({**schema, "properties": properties})
    return offered


def offered_output(model: type[BaseModel]) -> Schema:
    """The fields of an answer that are never null, by their type; the others are left unsaid."""
    fields = model.model_json_schema(mode="serialization")["properties"]
    return {
        "type": "object",
        "properties": {name: {"type": _kind(field)["type"]} for name, field in fields.items() if "anyOf" not in field},
        "required": ["summary", "next_step"],
    }


def _kind(schema: Mapping[str, Any]) -> Schema:
    """What sort of value it is, choices included; the inside of an object is left out."""
    kind: Schema = {"type": schema.get("type", "object")}
    if kind["type"] == "array":
        kind["items"] = _kind(schema.get("items", {}))
    elif "enum" in schema:
        kind["enum"] = schema["enum"]
    return kind


def _without_idle_bounds(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_idle_bounds(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_idle_bounds(value) for key, value in schema.items() if not _is_idle(key, value)}


def _is_idle(key: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if key in ("minimum", "exclusiveMinimum", "minItems"):
        return value <= IDLE_BELOW
    return key in ("maximum", "maxItems") and value >= IDLE_ABOVE
