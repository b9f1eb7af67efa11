"""What a request asks, read strictly: JSON of one meaning, or a query of single values, checked by the verb's model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from opd_core.errors import ConfigError
from opd_core.matching import STRICT_JSON
from opd_core.types import clean_text
from server.arguments.parsing import parse_arguments
from server.arguments.slim import input_schema

MAX_NESTING = 64
MAX_QUERY_FIELDS = 64
_CONTENT_TYPE = re.compile(r'application/json\s*(?:;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?")
_WORDS = {"true": True, "false": False}


def _number(text: str) -> float:
    """1.0 is a whole number in JSON Schema, and so it is here."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {clean_text(text, 40)} is too large")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_DECODER = json.JSONDecoder(
    object_pairs_hook=STRICT_JSON.object_pairs_hook, parse_constant=STRICT_JSON.parse_constant, parse_float=_number
)


async def body_arguments(request: Request, model: type[BaseModel]) -> BaseModel:
    """The checked arguments of a POST.

    Raises:
        HTTPException: 415 for another content type, 400 for what is not strict JSON.
        ConfigError: no object, or wrong arguments.
    """
    if request.scope["query_string"]:
        raise ConfigError("The arguments of a POST belong into its JSON body. Leave out what follows '?' in the path.")
    if not _CONTENT_TYPE.fullmatch(request.headers.get("content-type", "")) or "content-encoding" in request.headers:
        raise HTTPException(415, "Send the arguments as JSON, uncompressed, with Content-Type: application/json.")
    value = strict_json(await request.body())
    if not isinstance(value, dict):
        raise ConfigError("The body must be a JSON object of names and values; {} when there is nothing to say.")
    return parse_arguments(model, value, json_texts=False)


def strict_json(body: bytes) -> Any:
    """One JSON value in UTF-8, or an HTTPException(400) that says where it is not.

    Refused besides bad syntax: a key given twice, NaN and infinities, half of a surrogate pair, nesting deeper than 64.
    """
    try:
        value = _DECODER.decode(body.decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"Byte {error.start + 1} of the body is not UTF-8. Send JSON in UTF-8.") from None
    except UnicodeEncodeError:
        raise HTTPException(400, "The body holds half of a surrogate pair, which is no character.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise HTTPException(400, f"The body is not valid JSON: {clean_text(str(error), 120)}. Correct it.") from None
    if _nesting(value) > MAX_NESTING:
        raise _too_deep()
    return value


def _too_deep() -> HTTPException:
    return HTTPException(400, f"The body is nested deeper than {MAX_NESTING} levels. No argument needs that.")


def _nesting(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


async def query_arguments(request: Request, model: type[BaseModel]) -> BaseModel:
    """The checked arguments of a GET.

    Raises:
        HTTPException: 400 for a query that is not `name=value&…` in percent-encoded UTF-8.
        ConfigError: a body, a name given twice, or wrong arguments.
    """
    if await request.body():
        raise ConfigError("The arguments of a GET belong behind '?' in its path. Send no body.")
    return parsed_query(request.scope["query_string"], model)


def parsed_query(query_string: bytes, model: type[BaseModel]) -> BaseModel:
    """As `query_arguments`, of a request that has no body."""
    try:
        query = query_string.decode("ascii")
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError:  # also what is not UTF-8
        told = "The query must be name=value pairs joined by '&', percent-encoded in UTF-8. Correct it."
        raise HTTPException(400, told) from None
    given = dict(pairs)
    if len(given) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{clean_text(twice, 80)} is given twice. Give each name once; nothing was done.")
    properties = input_schema(model)["properties"]
    typed = {name: typed_value(text, properties.get(name, {})) for name, text in given.items()}
    return parse_arguments(model, typed, json_texts=False)


def typed_value(text: str, schema: Mapping[str, Any]) -> Any:
    """A number or a truth value where the field takes one, by JSON's spelling; anything else stays a text."""
    kind = schema.get("type")
    if kind == "boolean":
        return _WORDS.get(text, text)
    if kind in ("integer", "number") and _NUMBER.fullmatch(text):
        try:
            return _DECODER.decode(text)
        except ValueError:
            return text
    return text
