"""The OpenAPI 3.1 document of the JSON routes, made from the models that the routes check and answer with."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from opd_core import __version__
from opd_core.config import RunConfig
from opd_core.state.metrics import METRICS
from server.answers.plots import NO_NUMBERS
from server.arguments.jobs import CompareArguments, ProbeArguments
from server.arguments.slim import input_schema, without_titles
from server.arguments.studies import InspectArguments, PlotArguments
from server.live.progress import FollowArguments
from server.protocol.texts import TOOLS
from server.routes import ROUTES, VerbRoute
from server.verbs import VERBS
from server.web.problems import PROBLEM_TYPE, Problem

Schema = dict[str, Any]
Mode = Literal["validation", "serialization"]
COMPONENT = "#/components/schemas/{model}"
NULL: Schema = {"type": "null"}
PATTERN: Schema = {"type": "string", "format": "regex", "minLength": 1, "maxLength": 2000}

REFUSALS: dict[int, str] = {
    400: "The request cannot be read: query or body are not strict JSON in UTF-8, or head or path are malformed.",
    401: "No bearer token, or a wrong one.",
    402: "A budget is used up or frozen; nothing was spent.",
    403: "The Origin header names a web page that is not allowed.",
    404: "No run or job has this id.",
    405: "The path does not take this method; Allow names those it takes.",
    408: "The request did not arrive in time.",
    409: "The request does not fit the present state.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The body is not application/json.",
    421: "The Host header names another server.",
    422: "An argument is unknown, missing, of a wrong type or out of range, or a file it names cannot be used.",
    431: "The headers are too large.",
    500: "A fault of the server; the detail names the log.",
    503: "Too many requests at one time, a busy database, or an unusable OPD_HOME; Retry-After says when.",
}
ANYWHERE = (400, 401, 403, 405, 408, 413, 414, 415, 421, 431, 500, 503)
EVERY_VERB = (402, 404, 409, 422)

DESCRIPTION = """\
The verbs of the MCP tools as plain JSON. Arguments and answers are those of the tool of the same name. Every answer \
has `summary` and `next_step`; every error is `application/problem+json` whose `detail` says what to do next.

Send `Authorization: Bearer <token>`; the token lies in the file `token` under OPD_HOME. Only `/health` needs none.
MCP (streamable HTTP) is at `/mcp`; live events are at `/opd/events` (server-sent events) and `/opd/ws` (WebSocket).\
"""


@cache
def document() -> Schema:
    """The whole document."""
    schemas, arguments, answers = _schemas()
    paths: dict[str, Schema] = {}
    for route in ROUTES:
        operation = _operation(route, schemas, arguments, answers[route.verb])
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    for route in ROUTES:
        if route.method == "GET":  # its fields are parameters
            schemas.pop(arguments[route.verb], None)
    responses = {_name(status): _problem_response(told) for status, told in REFUSALS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "On-policy distillation", "version": __version__, "description": DESCRIPTION},
        "security": [{"bearer": []}],
        "paths": {**paths, **_own_paths()},
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: VerbRoute, schemas: Schema, arguments: dict[str, str], answer: Schema) -> Schema:
    text = TOOLS[route.verb]
    asked: Schema
    if route.method == "GET":
        asked = {"parameters": _parameters(schemas.get(arguments[route.verb], {}))}
    else:
        content = {"application/json": {"schema": {"$ref": COMPONENT.format(model=arguments[route.verb])}}}
        asked = {"requestBody": {"required": True, "content": content}}
    return {
        "operationId": route.verb,
        "summary": text.title,
        "description": text.description,
        **asked,
        "responses": {"200": _answer_response(answer), **_refusals((*EVERY_VERB, *ANYWHERE))},
    }


def _parameters(schema: Schema) -> list[Schema]:
    required = schema.get("required", [])
    found = []
    for name, field in schema.get("properties", {}).items():
        single = _single(field)
        told: Schema = {"name": name, "in": "query", "required": name in required}
        if "description" in single:
            told["description"] = single.pop("description")
        if single.get("type") == "array":  # a,b
            told |= {"style": "form", "explode": False}
            single |= {"minItems": 1}
        found.append({**told, "schema": single})
    return found


def _single(field: Schema) -> Schema:
    """Left out is how a query says null."""
    kept = {key: value for key, value in field.items() if not (key == "default" and value in (None, []))}
    choices = [choice for choice in kept.pop("anyOf", []) if choice != NULL]
    return {**choices[0], **kept} if choices else kept


def _answer_response(schema: Schema) -> Schema:
    return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}


def _problem_response(told: str) -> Schema:
    return {"description": told, "content": {PROBLEM_TYPE: {"schema": {"$ref": COMPONENT.format(model="Problem")}}}}


def _refusals(codes: tuple[int, ...]) -> Schema:
    return {str(code): {"$ref": f"#/components/responses/{_name(code)}"} for code in sorted(codes)}


def _name(status: int) -> str:
    return f"Refused{status}"


def _own_paths() -> Schema:
    """What is no verb: the server's life, and this document in two forms."""
    health = {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}
    return {
        "/health": {
            "get": _page("health", "Whether the server answers", "application/json", health) | {"security": []}
        },
        "/openapi.json": {"get": _page("openapi", "This document", "application/json", {"type": "object"})},
        "/docs": {"get": _page("docs", "This document to read", "text/html", {"type": "string"})},
        "/metrics": {"get": _page("prometheus", "Figures for Prometheus", "text/plain", {"type": "string"})},
        "/opd/events": {"get": _events()},
    }


def _events() -> Schema:
    """The stream of live events; the socket beside it has no place in such a document."""
    page = _page("events", "Live events, for as long as the client stays", "text/event-stream", {"type": "string"})
    last = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
    header = {"name": "Last-Event-ID", "in": "header", "required": False, "schema": last}
    return {
        **page,
        "description": "Each event `opd_progress` is a JSON object {type, data}, as on the socket at `/opd/ws`; its id "
        "is its sequence. The first bytes come at once, the end only when the client leaves.",
        "parameters": [
            *_parameters(input_schema(FollowArguments)),
            {**header, "description": "What a browser sends when it connects again; wins over `after`."},
        ],
        "responses": {**page["responses"], **_refusals((404, 422, *ANYWHERE))},
    }


def _page(name: str, summary: str, media_type: str, schema: Schema) -> Schema:
    content = {media_type: {"schema": schema}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary + ".", "content": content}, **_refusals(ANYWHERE)},
    }


def _schemas() -> tuple[Schema, dict[str, str], dict[str, Schema]]:
    """All component schemas, the name of each verb's arguments among them, and the reference of each verb's answer."""
    inputs: dict[str, type[BaseModel]] = {
        verb: model for verb, entry in VERBS.items() if (model := entry.arguments) is not ProbeArguments
    }
    asked: list[type[BaseModel]] = [*inputs.values(), RunConfig]
    said: list[type[BaseModel]] = [*(entry.answer for entry in VERBS.values()), Problem]
    models: list[tuple[type[BaseModel], Mode]] = [(model, "validation") for model in asked]
    models += [(model, "serialization") for model in said]
    references, made = models_json_schema(list(dict.fromkeys(models)), ref_template=COMPONENT)
    schemas: Schema = without_titles(made["$defs"])
    _add_rules(schemas)
    schemas[ProbeArguments.__name__] = _probe_schema(schemas[RunConfig.__name__])
    names = {verb: references[(model, "validation")]["$ref"].rpartition("/")[2] for verb, model in inputs.items()}
    names |= {verb: ProbeArguments.__name__ for verb in VERBS if verb not in inputs}
    return schemas, names, {verb: references[(entry.answer, "serialization")] for verb, entry in VERBS.items()}


def _given(*names: str, **properties: Schema) -> Schema:
    return {"required": list(names), "properties": properties} if names else {"properties": properties}


def _add_rules(schemas: Schema) -> None:
    """What the models check in code, so that whatever the document allows is taken."""
    text: Schema = {"type": "string"}
    a_file = [_given(name, **{name: text}) for name in ("prompts_path", "validation_prompts_path")]
    schemas[InspectArguments.__name__]["anyOf"] = a_file
    schemas[PlotArguments.__name__]["properties"]["keys"]["items"] = {"enum": sorted(METRICS.keys() - NO_NUMBERS)}
    schemas[RunConfig.__name__]["allOf"] = [
        {"anyOf": a_file},
        {"anyOf": [_given(teacher_ema={"maximum": 0}), _given(teacher_refresh_steps=NULL)]},
    ]
    schemas[CompareArguments.__name__]["anyOf"] = [
        _given("judge", "judge_budget_usd", judge={"const": True}, judge_budget_usd={"type": "number"}),
        _given(judge={"const": False}, judge_budget_usd=NULL, judge_model_id=NULL),
    ]
    schemas["RegexCheck"]["properties"]["pattern"] |= PATTERN
    extractor = schemas["ExtractorSpec"]
    own = {"tag": "tag", "regex": "pattern", "json_path": "path"}
    fields = extractor["properties"]
    fields["pattern"]["anyOf"] = [PATTERN, NULL]
    none = {name: NULL for name in own.values()}
    extractor["anyOf"] = [
        _given(kind={"enum": ["whole", "last_number"]}, **none),
        *(
            _given("kind", name, **{**none, "kind": {"const": kind}, name: {"type": "string"}})
            for kind, name in own.items()
        ),
    ]


def _probe_schema(run: Schema) -> Schema:
    """A probe to fetch by its id, or the fields of a run to start one."""
    own = without_titles(ProbeArguments.model_json_schema()["properties"])
    wait, job = own["timeout_seconds"], {**own["job_id"]}
    job.pop("default")
    fetched = {**job, **next(choice for choice in job.pop("anyOf") if choice != NULL)}
    fetched.pop("anyOf", None)
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {"job_id": fetched, "timeout_seconds": wait},
                "required": ["job_id"],
                "additionalProperties": False,
            },
            {**run, "properties": {"job_id": NULL, "timeout_seconds": wait, **run["properties"]}},
        ]
    }
