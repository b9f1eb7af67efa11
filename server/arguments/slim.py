"""The JSON schema of arguments, slim: what tells an assistant nothing is left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from opd_core.config import RunConfig
from server.arguments.jobs import OWN_PROBE_ARGUMENTS, ProbeArguments

# Schema keywords that cost an assistant tokens and tell it nothing; the models check lengths all the same.
UNSAID = frozenset({"title", "discriminator", "minLength", "maxLength"})


@cache
def input_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The slim schema of a model: no titles, no anyOf-null, no null defaults, references written out."""
    if model is ProbeArguments:
        return _probe_schema()
    full = model.model_json_schema()
    definitions = full.pop("$defs", {})
    full.pop("description", None)
    schema: dict[str, Any] = slim(full, definitions)
    schema.setdefault("properties", {})
    return schema


def _probe_schema() -> dict[str, Any]:
    """The fields of a run are described by start_distillation; here their types are enough."""
    run, own = input_schema(RunConfig), ProbeArguments.model_json_schema()["properties"]
    fields = {name: _undescribed(field) for name, field in run["properties"].items()}
    mine = {name: slim(own[name], {}) for name in ProbeArguments.model_fields if name in OWN_PROBE_ARGUMENTS}
    return {**run, "properties": {**mine, **fields}, "required": []}


def _undescribed(schema: Any) -> Any:
    return {key: value for key, value in schema.items() if key != "description"}


def slim(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Drop what says nothing, write `$ref`s out (there are no recursive ones), turn "or null" into optional."""
    if isinstance(schema, list):
        return [slim(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        return slim({**target, **{key: value for key, value in schema.items() if key != "$ref"}}, definitions)
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            kept[key] = {name: slim(inner, definitions) for name, inner in value.items()}
        elif key not in UNSAID:
            kept[key] = slim(value, definitions)
    choices = kept.get("anyOf", [])
    if {"type": "null"} in choices and len(choices) == 2:
        del kept["anyOf"]
        kept = next(choice for choice in choices if choice != {"type": "null"}) | kept
    if kept.get("default", 0) is None:
        del kept["default"]
    if kept.get("additionalProperties") == {}:  # what saying nothing means; some hosts refuse an empty schema
        del kept["additionalProperties"]
    return kept


def without_titles(schema: Any) -> Any:
    """An output schema less its titles; its nulls stay, since an answer really holds them."""
    if isinstance(schema, list):
        return [without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    return {key: without_titles(value) for key, value in kept.items()}
