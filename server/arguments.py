"""What each tool takes: one model a tool, its slim JSON schema, and wrong arguments said in our words.

`start_distillation` and `estimate_cost` take the fields of `RunConfig` itself. The gate runs before the SDK's own
validation, which would ignore unknown arguments and answer wrong ones with a framework's dump.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Strict, ValidationError, model_validator

from opd_core.comparison import MAX_CANDIDATES, Candidate
from opd_core.config import Frozen, RunConfig, config_error, explain_validation, parse_config
from opd_core.errors import ConfigError
from opd_core.matching import STRICT_JSON
from opd_core.types import RunState

DEFAULT_WAIT_SECONDS = 20.0
MAX_WAIT_SECONDS = 50.0
# Schema keywords that cost an assistant tokens and tell it nothing; the models check lengths all the same.
UNSAID = frozenset({"title", "discriminator", "minLength", "maxLength"})

RunId = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=64,
        description="Run or job id, or a unique beginning of one. Left out: the current run, else the latest.",
    ),
]
Seconds = Annotated[float, Field(ge=0, le=3600)]


class NoArguments(Frozen):
    """For tools that take nothing."""


class ModelsArguments(Frozen):
    contains: str | None = Field(
        None, min_length=1, max_length=100, description="Show only names and paths with this text in them."
    )


class RunArguments(Frozen):
    run_id: RunId = None


class WaitArguments(RunArguments):
    timeout_seconds: Seconds = Field(
        DEFAULT_WAIT_SECONDS, description=f"Longest wait; more than {MAX_WAIT_SECONDS:g} is shortened to that."
    )


class MetricsArguments(RunArguments):
    series: Literal["train", "eval"] = Field("train", description="train: one line a step; eval: held-out evaluations.")
    points: int = Field(40, ge=1, le=200, description="Most lines returned, evenly thinned; first and last are kept.")
    since_step: int | None = Field(None, ge=0, le=1_000_000, description="Only lines after this step.")


class ListRunsArguments(Frozen):
    state: RunState | None = Field(None, description="Only runs in this state.")
    session_id: str | None = Field(None, max_length=128, description="Only runs of this session.")
    limit: int = Field(10, ge=1, le=20, description="Most runs returned, newest first.")
    cursor: str | None = Field(None, max_length=200, description="next_cursor of the answer before, for the rest.")


class StopArguments(RunArguments):
    timeout_seconds: Seconds = Field(10.0, description="Longest wait for the clean end; the stop itself goes on.")


class ResumeArguments(RunArguments):
    num_training_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="New total of steps, to train longer than first asked."
    )
    max_budget_usd: float | None = Field(
        None, ge=0.0, le=1e6, description="New budget of the run; needs confirmed when it is larger."
    )
    confirmed: bool = Field(False, description="The user agreed to the larger budget.")
    from_step: int | None = Field(
        None, ge=0, description="Go on from the checkpoint of this step; later ones, a damaged one too, are given up."
    )
    accept_changes: bool = Field(
        False, description="The user wants to go on though prompts, models or adapter were changed since."
    )


class CompareArguments(Frozen):
    job_id: str | None = Field(
        None, min_length=1, max_length=64, description="Fetch a comparison started before; nothing else is needed."
    )
    run_id: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Run whose base, teacher, held-out prompts and check are used. Left out: the latest finished run.",
    )
    candidates: Annotated[tuple[Candidate, ...], Strict(False), Field(max_length=MAX_CANDIDATES)] = Field(
        (),
        description="What to compare: a name and an mlx-lm adapter folder (adapter_path; left out: the base alone). "
        "Left out: base, the run's incoming adapter if any, its distilled adapter. All are measured against the run's "
        "incoming adapter, else the base, else the first: give two adapters alone to measure them against each other.",
    )
    max_samples: int | None = Field(
        None, ge=1, le=10_000, description="Most held-out prompts; left out: as many as the run's evaluations use."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the confidence intervals and the samples shown.")
    judge: bool = Field(
        False, description="Also let a paid text teacher judge the answers, blindly; needs judge_budget_usd."
    )
    judge_budget_usd: float | None = Field(
        None, gt=0.0, le=1e6, description="Most the judging may spend: a budget of its own that the user agreed to."
    )
    judge_model_id: str | None = Field(
        None, min_length=1, max_length=200, description="The judge; left out: the run's remote teacher, or the usual."
    )
    confirmed: bool = Field(False, description="The user agreed to a judge_budget_usd above $1.")
    timeout_seconds: Seconds = Field(
        DEFAULT_WAIT_SECONDS, description=f"Longest wait for the result; at most {MAX_WAIT_SECONDS:g}."
    )

    @model_validator(mode="after")
    def _judging_has_a_budget(self) -> CompareArguments:
        if self.judge and self.judge_budget_usd is None:
            raise ValueError(
                "judge true needs judge_budget_usd: ask the user how many dollars the judging may spend (each held-out "
                "prompt takes two calls a candidate)"
            )
        if not self.judge and (self.judge_budget_usd is not None or self.judge_model_id is not None):
            raise ValueError("judge_budget_usd and judge_model_id are for judging; give judge true, or leave them out")
        return self


class ProbeArguments(Frozen):
    """A probe to start (`config`: the fields of a run, given side by side with the others), or one to fetch."""

    job_id: str | None = Field(
        None, min_length=1, max_length=64, description="Fetch a probe started before; nothing else is needed."
    )
    timeout_seconds: Seconds = Field(
        DEFAULT_WAIT_SECONDS, description=f"Longest wait for the result; at most {MAX_WAIT_SECONDS:g}."
    )
    config: RunConfig | None = None


OWN_PROBE_ARGUMENTS = frozenset(ProbeArguments.model_fields) - {"config"}


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
