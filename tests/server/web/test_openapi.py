"""The OpenAPI document and the page of it: valid, complete, and no stricter and no laxer than the models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import jsonschema
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from starlette.routing import Route
from starlette.testclient import TestClient

from opd_core.config import RunConfig
from opd_core.errors import ConfigError
from server.arguments.parsing import parse_arguments
from server.routes import ROUTES
from server.verbs import VERBS
from server.web.app import http_app, plain_routes
from server.web.docs_page import POLICY, docs_page
from server.web.openapi import REFUSALS, document
from server.web.problems import STATUSES
from tests.server.asgi import TOKEN
from tests.server.fakes import FakeUseCases
from tests.server.records import CONFIG

POSTS = [route for route in ROUTES if route.method == "POST"]
GETS = [route for route in ROUTES if route.method == "GET"]


def accepts(schema: dict[str, Any], value: object) -> bool:
    """Whether a schema of the document takes a value."""
    whole = DRAFT202012.create_resource({"components": document()["components"]})
    registry: Registry[Any] = Registry().with_resource("urn:document", whole)
    pinned = json.loads(json.dumps(schema).replace('"#/components', '"urn:document#/components'))
    return jsonschema.Draft202012Validator(pinned, registry=registry).is_valid(value)


def body_schema(path: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return found


def test_the_document_is_valid_openapi_3_1() -> None:
    definitions = pytest.importorskip("schemathesis.specs.openapi.definitions")
    definitions.OPENAPI_31_VALIDATOR.validate(document())
    for schema in document()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": "#/components/([^"]+)"', json.dumps(document())):
        room, _, name = reference.partition("/")
        assert name in document()["components"][room], reference


def test_every_route_is_documented_with_its_texts_answers_and_refusals() -> None:
    paths = document()["paths"]
    assert set(paths) == {route.path for route in plain_routes(FakeUseCases()) if isinstance(route, Route)}
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        assert operation["operationId"] == route.verb and operation["description"]
        assert "200" in operation["responses"] and {str(status) for status in REFUSALS} == {
            status for status in operation["responses"] if status != "200"
        }
        for parameter in operation.get("parameters", []):
            assert parameter["description"] and {"type": "null"} not in parameter["schema"].get("anyOf", [])


def test_every_status_of_an_error_is_documented() -> None:
    assert {status for _, status in STATUSES} | {500} <= set(REFUSALS)


def test_only_health_needs_no_token() -> None:
    assert document()["security"] == [{"bearer": []}]
    open_paths = {path for path, ways in document()["paths"].items() for way in ways.values() if "security" in way}
    assert open_paths == {"/health"}


@pytest.mark.parametrize("route", GETS, ids=lambda route: route.verb)
def test_the_parameters_are_the_fields_of_the_arguments(route: Any) -> None:
    listed = document()["paths"][route.path]["get"]["parameters"]
    assert [parameter["name"] for parameter in listed] == list(VERBS[route.verb].arguments.model_fields)


PROBE = {"timeout_seconds": 1}
BODIES: list[tuple[str, dict[str, Any], bool]] = [
    ("/opd/start", CONFIG, True),
    ("/opd/start", {**CONFIG, "client_request_id": "once", "lora_rank": None}, True),
    ("/opd/start", {"base_model_path": "tiny"}, False),
    ("/opd/start", {"base_model_path": "tiny", "prompts_path": None}, False),
    ("/opd/start", {**CONFIG, "batch_sise": 1}, False),
    ("/opd/start", {**CONFIG, "batch_size": 0}, False),
    ("/opd/start", {**CONFIG, "run_id": "-a"}, False),
    ("/opd/start", {**CONFIG, "client_request_id": ""}, False),
    ("/opd/start", {**CONFIG, "teacher_ema": 0.5, "teacher_refresh_steps": 3}, False),
    ("/opd/start", {**CONFIG, "teacher_ema": 0.0, "teacher_refresh_steps": 3}, True),
    ("/opd/start", {**CONFIG, "check": {"kind": "regex", "pattern": "a+"}}, True),
    ("/opd/start", {**CONFIG, "check": {"kind": "nothing"}}, False),
    ("/opd/start", {**CONFIG, "check": {"kind": "json_schema", "schema": {}}}, True),
    ("/opd/start", {**CONFIG, "extractor": {"kind": "tag", "tag": "answer"}}, True),
    ("/opd/start", {**CONFIG, "extractor": {"tag": "answer"}}, False),
    ("/opd/start", {**CONFIG, "extractor": {"kind": "tag"}}, False),
    ("/opd/start", {**CONFIG, "extractor": {"kind": "regex", "pattern": "a", "path": "b"}}, False),
    ("/opd/start", {**CONFIG, "extractor": {}}, True),
    ("/opd/estimate", CONFIG, True),
    ("/opd/prompts", {"prompts_path": "/a.txt", "samples": 0}, True),
    ("/opd/prompts", {"samples": 0}, False),
    ("/opd/probe", {**CONFIG, **PROBE}, True),
    ("/opd/probe", {**CONFIG, "job_id": None}, True),
    ("/opd/probe", {"job_id": "prb_1", **PROBE}, True),
    ("/opd/probe", {"job_id": "prb_1", **CONFIG}, False),
    ("/opd/probe", PROBE, False),
    ("/opd/compare", {}, True),
    ("/opd/compare", {"judge": True, "judge_budget_usd": 1}, True),
    ("/opd/compare", {"judge": True}, False),
    ("/opd/compare", {"judge_budget_usd": 1}, False),
    ("/opd/compare", {"candidates": [{"name": "base"}], "judge": False, "judge_model_id": None}, True),
    ("/opd/compare", {"candidates": [{"nam": "base"}]}, False),
    ("/opd/stop", {}, True),
    ("/opd/stop", {"timeout_seconds": 3601}, False),
    ("/opd/resume", {"max_budget_usd": 5.5, "confirmed": True}, True),
    ("/opd/resume", {"max_budget_usd": "5.5"}, False),
]


@pytest.mark.parametrize(("path", "body", "good"), BODIES, ids=lambda value: json.dumps(value)[:90])
def test_the_document_takes_a_body_exactly_when_the_model_does(path: str, body: dict[str, Any], good: bool) -> None:
    assert accepts(body_schema(path), body) is good
    model = VERBS[next(route.verb for route in POSTS if route.path == path)].arguments
    try:
        parse_arguments(model, body, json_texts=False)
        taken = True
    except ConfigError:
        taken = False
    assert taken is good


def test_the_configuration_has_every_field_and_no_other() -> None:
    schema = document()["components"]["schemas"]["RunConfig"]
    assert list(schema["properties"]) == list(RunConfig.model_fields) and schema["additionalProperties"] is False


def test_the_page_shows_every_route_and_runs_no_script() -> None:
    page = docs_page()
    for path in document()["paths"]:
        assert f"{path}</code>" in page
    for name in RunConfig.model_fields:
        assert f"<code>{name}</code>" in page
    assert "<script" not in page and "http" not in re.sub(r"HTTP|streamable_http|--http", "", page).split("<h1>")[0]
    assert not re.search(r"(?:src|href)=(?!#)", page)
    for target in re.findall(r"href=#(\w+)", page):
        assert f"id={target}>" in page


def test_the_policy_of_the_page_lets_in_its_own_style_and_nothing_else() -> None:
    app = http_app(FakeUseCases(), token=TOKEN, hosts=frozenset({"testserver"}), origins=frozenset())
    with TestClient(app, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        response = client.get("/docs")
        assert client.get("/openapi.json").json() == document()
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == POLICY and POLICY.startswith("default-src 'none'")
    (style,) = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in POLICY
