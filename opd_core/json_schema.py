"""JSON Schema (2020-12) as a check on model text: no network, no untimed patterns, no exception on any value.

The library is imported when a schema is used, so that a server without one does not pay for it at start.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from opd_core.matching import compile_pattern, matches
from opd_core.types import clean_text

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse a schema that could not be used to score a text.

    Raises:
        ValueError: not a valid schema, a bad pattern, `patternProperties` (it cannot be given a time limit),
            or a reference to another document or to a place that does not exist.
    """
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        _validator_class().check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"the JSON schema is not valid: {clean_text(error.message, 200)}") from None
    except RecursionError:
        raise ValueError("the JSON schema, or a pattern in it, is nested too deeply") from None
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for node in _objects(schema):
        if "patternProperties" in node:
            raise ValueError('the JSON schema may not use "patternProperties"; list the keys in "properties"')
        if isinstance(node.get("pattern"), str):
            compile_pattern(node["pattern"])
        reference = node.get("$ref", "#")
        try:
            resolver.lookup(reference if str(reference).startswith("#") else "#/not/local")
        except Unresolvable:
            raise ValueError(
                f"the JSON schema refers to {clean_text(str(reference), 80)!r}, which is not in it"
            ) from None


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a checked schema accepts a parsed JSON value; False when deciding it goes too deep."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # without a registry of our own, the library would fetch what a schema refers to from the web
    validator = _validator_class()(schema, registry=Registry())
    try:
        return validator.is_valid(value)
    except (RecursionError, ArithmeticError, Unresolvable):
        return False


@functools.cache
def _validator_class() -> type[Validator]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def timed_pattern(validator: Any, pattern: str, instance: object, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not matches(pattern, instance):
            yield ValidationError("the text does not match the pattern")

    validator_class: type[Validator] = extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {"pattern": timed_pattern}
    )
    return validator_class


def _objects(node: object) -> Iterator[dict[str, Any]]:
    children: list[Any] = []
    if isinstance(node, dict):
        yield node
        children = list(node.values())
    elif isinstance(node, list):
        children = node
    for child in children:
        yield from _objects(child)
