"""JSON schemas and tables as Markdown, for `scripts/reference.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
NULL = {"type": "null"}
REFERENCE = "#/components/schemas/"
LOWER = {"minimum": "from {}", "exclusiveMinimum": "above {}"}
UPPER = {"maximum": "to {}", "exclusiveMaximum": "below {}"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; line breaks and bars in cells cannot break it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def code(text: object) -> str:
    """Text as it is typed."""
    return f"`{text}`"


def listed(values: Iterable[object]) -> str:
    """`a`, `b`, `c`."""
    return ", ".join(map(code, values))


def type_words(schema: Schema) -> str:
    """One schema in a few words, without its null."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if schema["$ref"].startswith(REFERENCE) else "object"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema and "properties" not in schema:
            return " or ".join(dict.fromkeys(type_words(choice) for choice in schema[key] if choice != NULL))
    if "enum" in schema or "const" in schema:
        return listed(schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        return f"list of {type_words(schema.get('items', {}))}"
    words = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number"}
    bounds = [told.format(f"{schema[key]:,}") for key, told in (LOWER | UPPER).items() if key in schema]
    return " ".join([words.get(kind, kind), *bounds])


def is_nullable(schema: Schema) -> bool:
    """Whether null is among its values."""
    return NULL in schema.get("anyOf", [])


def argument_rows(schema: Schema) -> list[list[str]]:
    """Name, type, default and meaning of every argument."""
    required = schema.get("required", [])
    return [
        [code(name), type_words(field), "needed" if name in required else _default(field), field.get("description", "")]
        for name, field in schema["properties"].items()
    ]


def _default(field: Schema) -> str:
    value = field.get("default")
    if value is None or value == [] or value == ():
        return ""
    return code({True: "true", False: "false"}[value] if isinstance(value, bool) else value)


def field_rows(schema: Schema) -> list[list[str]]:
    """Name, type and meaning of every field of an answer."""
    return [
        [code(name), type_words(field) + (" or null" if is_nullable(field) else ""), field.get("description", "")]
        for name, field in schema.get("properties", {}).items()
    ]
