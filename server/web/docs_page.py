"""`GET /docs`: the OpenAPI document as one page without scripts, so that the strictest policy fits it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any

from server.web.openapi import document

STYLE = """\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
code,pre{font:14px/1.4 ui-monospace,monospace}h2{border-top:1px solid #ccc;padding-top:1rem}
td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0}summary{cursor:pointer}
p{white-space:pre-line}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}\
"""
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)
"""The page's Content-Security-Policy: nothing but its own style."""

Schema = dict[str, Any]


@cache
def docs_page() -> str:
    """The page."""
    whole = document()
    info, schemas = whole["info"], whole["components"]["schemas"]
    parts = [
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>",
        f"<style>{STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])}</p>",
    ]
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            parts += _operation(f"{method.upper()} {path}", operation, whole["components"]["responses"])
    parts.append("<h2>Models</h2>")
    for name, schema in schemas.items():
        parts += [f"<h3 id={escape(name)}>{escape(name)}</h3>", *_fields(schema, schema.get("required", []))]
    return "".join(parts)


def _operation(heading: str, operation: Schema, responses: Schema) -> Iterator[str]:
    name, title = escape(operation["operationId"]), escape(operation["summary"])
    yield f"<h2 id={name}><code>{escape(heading)}</code> {title}</h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    if parameters := operation.get("parameters"):
        fields = {each["name"]: {**each["schema"], "description": each.get("description", "")} for each in parameters}
        yield from _fields({"properties": fields}, [each["name"] for each in parameters if each["required"]])
    if body := operation.get("requestBody"):
        yield f"<p>Body: {_type(body['content']['application/json']['schema'])}</p>"
    for media_type, content in operation["responses"]["200"]["content"].items():
        yield f"<p>Answer: {_type(content['schema'])}, {escape(media_type)}</p>"
    yield "<details><summary>Refusals</summary><table>"
    for status, response in operation["responses"].items():
        if "$ref" in response:
            yield f"<tr><td>{status}<td>{escape(responses[_last(response['$ref'])]['description'])}"
    yield "</table></details>"


def _fields(schema: Schema, required: list[str]) -> Iterator[str]:
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
        return
    yield "<table><tr><th>Name<th>Type<th>Meaning"
    for name, field in schema["properties"].items():
        needed = " (required)" if name in required else ""
        told = escape(field.get("description", ""))
        yield f"<tr><td><code>{escape(name)}</code>{needed}<td>{_type(field)}<td>{told}"
    yield "</table>"


def _type(schema: Schema) -> str:
    """One schema in a few words."""
    if "$ref" in schema:
        name = escape(_last(schema["$ref"]))
        return f"<a href=#{name}>{name}</a>"
    for key in ("anyOf", "oneOf"):
        if key in schema and "properties" not in schema:
            return " or ".join(_type(choice) for choice in schema[key])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    said = escape(str(schema.get("type", "any value")))
    return said + "".join(f", {told} {escape(str(schema[key]))}" for key, told in BOUNDS.items() if key in schema)


BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "shortest",
    "maxLength": "longest",
    "default": "default",
}


def _last(reference: str) -> str:
    return reference.rpartition("/")[2]
