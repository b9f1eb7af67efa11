"""The final answer out of a text (`extract`), and the task score of one completion (`score`).

The text is a model's, so it may be hostile: only its last 20,000 characters are read, every pattern runs with
a time limit, JSON is strict, and nothing here raises on any text. Patterns, schemas and forms are the user's
and are checked when the configuration is.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from opd_core.json_schema import accepts, check_schema
from opd_core.matching import (
    NUMBER,
    STRICT_JSON,
    compile_pattern,
    last_match,
    matches,
    normalise,
    same_answer,
)
from opd_core.prompt_records import PromptExample

MAX_TEXT_CHARS = 20_000
MAX_JSON_STARTS = 64  # how many "{" are tried when looking for the first JSON object
_PLACEHOLDER = re.compile(r"\{(prompt|reference)\}")


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


class ExtractorSpec(_Frozen):
    """Where in a text its final answer stands; `tag`, `regex` and `json_path` each need their own field.

    `whole`: all of it. `tag`: inside the last `<tag>…</tag>`. `regex`: the first group of the last match, or
    all of the match when there is no group. `json_path`: the value at a dotted path in the first JSON object.
    `last_number`: the last number, without thousands commas.
    """

    kind: Literal["whole", "tag", "regex", "json_path", "last_number"] = "whole"
    tag: str | None = Field(
        default=None, pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,40}$", description='For tag, e.g. "answer".'
    )
    pattern: str | None = Field(default=None, min_length=1, description=r'For regex, e.g. "#### (\\d+)".')
    path: str | None = Field(default=None, min_length=1, max_length=200, description='For json_path, e.g. "result.0".')

    @model_validator(mode="after")
    def _has_exactly_its_own_field(self) -> Self:
        needed = {"tag": "tag", "regex": "pattern", "json_path": "path"}.get(self.kind)
        for name in ("tag", "pattern", "path"):
            if (getattr(self, name) is not None) != (name == needed):
                rule = "needs" if name == needed else "does not take"
                raise ValueError(f"the extractor {self.kind!r} {rule} the field {name!r}")
        if self.pattern is not None:
            compile_pattern(self.pattern)
        return self


WHOLE = ExtractorSpec()


class RegexCheck(_Frozen):
    """1 when the pattern matches all of the answer (`full`) or some part of it (`search`)."""

    kind: Literal["regex"]
    pattern: str = Field(min_length=1)
    must_match: Literal["full", "search"] = "full"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        compile_pattern(pattern)
        return pattern


class JsonSchemaCheck(_Frozen):
    """1 when the answer is one JSON value that `schema` (JSON Schema 2020-12) accepts."""

    kind: Literal["json_schema"]
    json_schema: dict[str, JsonValue] = Field(alias="schema")  # `schema` itself is a method of every pydantic model

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
        check_schema(schema)
        return schema


class ReferenceCheck(_Frozen):
    """1 when the answer equals the example's `reference`: numbers by value, texts by `normalise`."""

    kind: Literal["reference"]


class JsonEqualsCheck(_Frozen):
    """1 when the answer is one JSON object equal to `form`: exactly its keys, texts compared by `normalise`.

    In the form's texts `{prompt}` stands for the prompt and `{reference}` for the example's reference.
    """

    kind: Literal["json_equals"]
    form: dict[str, JsonValue] = Field(min_length=1)


CheckSpec = Annotated[RegexCheck | JsonSchemaCheck | ReferenceCheck | JsonEqualsCheck, Field(discriminator="kind")]
"""How one completion is scored, chosen by `kind`."""


def needs_reference(check: CheckSpec) -> bool:
    """Whether the check can only score examples that have a reference."""
    if isinstance(check, JsonEqualsCheck):
        return "{reference}" in json.dumps(check.form)
    return isinstance(check, ReferenceCheck)


def score(check: CheckSpec, completion: str, example: PromptExample, extractor: ExtractorSpec = WHOLE) -> float:
    """The task score of a completion in [0, 1]; the check judges what the extractor takes out of it.

    An answer that is absent, of the wrong shape or too slow to match scores 0, and so does any answer to an
    example without the reference that the check needs.
    """
    answer = extract(extractor, completion)
    if answer is None or (needs_reference(check) and example.reference is None):
        return 0.0
    match check:
        case RegexCheck():
            return float(matches(check.pattern, answer, full=check.must_match == "full"))
        case ReferenceCheck():
            return float(same_answer(answer, example.reference or ""))
        case JsonSchemaCheck() | JsonEqualsCheck():
            return float(_json_is_right(check, answer, example))


def extract(spec: ExtractorSpec, text: str) -> str | None:
    """The final answer in the last 20,000 characters of a text, stripped; None when there is none."""
    text = text[-MAX_TEXT_CHARS:]
    answer: str | None
    match spec.kind:
        case "whole":
            answer = text
        case "tag":
            end = text.rfind(f"</{spec.tag}>")
            start = text.rfind(f"<{spec.tag}>", 0, max(end, 0))
            answer = None if start < 0 else text[start + len(f"<{spec.tag}>") : end]
        case "regex":
            answer = last_match(str(spec.pattern), text)
        case "json_path":
            answer = _at_json_path(_first_json_object(text), str(spec.path))
        case "last_number":
            numbers = NUMBER.findall(text)
            answer = numbers[-1].replace(",", "") if numbers else None
    return None if answer is None else answer.strip()


def _first_json_object(text: str) -> object:
    position = -1
    for _ in range(MAX_JSON_STARTS):
        position = text.find("{", position + 1)
        if position < 0:
            break
        try:
            return STRICT_JSON.raw_decode(text, position)[0]
        except (ValueError, RecursionError):
            continue
    return None


def _at_json_path(value: object, path: str) -> str | None:
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return None


def _json_is_right(check: JsonSchemaCheck | JsonEqualsCheck, answer: str, example: PromptExample) -> bool:
    try:
        value = STRICT_JSON.decode(answer)
    except (ValueError, RecursionError):
        return False
    if isinstance(check, JsonSchemaCheck):
        return accepts(check.json_schema, value)
    return _fits(check.form, value, example)


def _fits(form: JsonValue, value: Any, example: PromptExample) -> bool:
    """Compare a parsed answer with the form; the form's own depth bounds the recursion."""
    if isinstance(form, dict):
        same_keys = isinstance(value, dict) and form.keys() == value.keys()
        return same_keys and all(_fits(form[key], value[key], example) for key in form)
    if isinstance(form, list):
        same_length = isinstance(value, list) and len(form) == len(value)
        return same_length and all(_fits(*pair, example) for pair in zip(form, value, strict=True))
    if isinstance(form, str):
        filling = {"prompt": example.prompt, "reference": example.reference or ""}
        filled = _PLACEHOLDER.sub(lambda found: filling[found.group(1)], form)
        return isinstance(value, str) and normalise(filled) == normalise(value)
    return isinstance(form, bool) == isinstance(value, bool) and form == value
