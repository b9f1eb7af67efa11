"""The arguments of a call as one checked model; what is wrong with them is said in our words.

This runs before the SDK's own validation, which would ignore unknown arguments and answer wrong ones with a framework's
dump.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from opd_core.config import RunConfig, config_error, explain_validation, parse_config
from opd_core.errors import ConfigError
from opd_core.matching import STRICT_JSON
from server.arguments.jobs import OWN_PROBE_ARGUMENTS, ProbeArguments
from server.arguments.slim import input_schema


def parse_arguments(model: type[BaseModel], arguments: Mapping[str, Any], *, json_texts: bool = True) -> BaseModel:
    """The checked arguments of one call.

    Args:
        json_texts: take a list or an object that came as JSON inside a text; MCP hosts send them, HTTP clients do not.

    Raises:
        ConfigError: lists everything that is wrong, with near names for unknown arguments.
    """
    given = _undo_json_strings(model, arguments) if json_texts else dict(arguments)
    if model is RunConfig:
        return parse_config(given)
    if model is ProbeArguments:
        run = {name: given.pop(name) for name in list(given) if name not in OWN_PROBE_ARGUMENTS}
        if given.get("job_id") is None:
            given["config"] = parse_config(run)
        elif run:
            raise config_error([f"job_id fetches a probe that was started before; leave out {', '.join(run)}"])
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = explain_validation(error, model.model_fields)
        raise ConfigError(f"{'; '.join(problems).rstrip('?')}. Correct it and call again; nothing was done.") from None


def _undo_json_strings(model: type[BaseModel], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Some hosts send a list or an object as JSON inside a text; take it out where no text is allowed."""
    properties = input_schema(model)["properties"]
    given = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, str) and value[:1] in ("[", "{") and not _takes_text(properties.get(name)):
            try:
                given[name] = STRICT_JSON.decode(value)
            except (ValueError, RecursionError) as error:
                raise config_error([f"{name} is a text that is not valid JSON: {str(error)[:100]}"]) from None
    return given


def _takes_text(schema: dict[str, Any] | None) -> bool:
    return schema is None or schema.get("type") == "string"
