"""The JSON routes: the same answers as the tools, strict reading, refusals that say what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from opd_core.errors import (
    BudgetFrozenError,
    HomeError,
    OPDError,
    PathError,
    RunNotFoundError,
    StateError,
    StoreError,
    TrainingError,
)
from server.routes import ROUTES, VerbRoute
from server.verbs import VERBS
from server.web.app import http_app
from tests.server.asgi import TOKEN
from tests.server.fakes import FakeUseCases, call, data_of, text_of
from tests.server.records import CONFIG, completed, make_row
from tests.server.test_tools import CALLS

JSON = {"content-type": "application/json"}
BY_VERB = {route.verb: route for route in ROUTES}


@contextmanager
def door(cases: FakeUseCases) -> Iterator[TestClient]:
    """A client that is let in."""
    app = http_app(cases, token=TOKEN, hosts=frozenset({"testserver"}), origins=frozenset())
    with TestClient(app, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def ask(client: TestClient, route: VerbRoute, arguments: dict[str, Any]) -> httpx2.Response:
    """Ask a verb by its route."""
    if route.method == "POST":
        return client.post(route.path, json=arguments)
    return client.get(route.path, params=arguments)


def post(path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[httpx2.Response, FakeUseCases]:
    cases = FakeUseCases(rows=[make_row()])
    with door(cases) as client:
        return client.post(path, content=body, headers=JSON if headers is None else headers), cases


def get(path: str) -> tuple[httpx2.Response, FakeUseCases]:
    cases = FakeUseCases(rows=[make_row()])
    with door(cases) as client:
        return client.get(path), cases


def problem_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    found: dict[str, Any] = response.json()
    assert found["status"] == status and found["title"] and found["type"]
    return found


def test_every_verb_has_one_route_and_every_route_a_verb() -> None:
    assert sorted(route.verb for route in ROUTES) == sorted(VERBS)
    assert len({route.path for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("name", VERBS)
def test_a_route_gives_the_structured_answer_of_its_tool(name: str) -> None:
    cases, arguments = CALLS[name]
    with door(cases) as client:
        response = ask(client, BY_VERB[name], arguments)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json" and response.headers["cache-control"] == "no-store"
    if VERBS[name].shows_image:
        image = call(cases, name, arguments).content[0]
        assert image.type == "image" and response.json()["png_base64"] == image.data
        return
    assert response.json() == data_of(call(cases, name, arguments))


@pytest.mark.parametrize("name", VERBS)
def test_a_wrong_argument_is_told_as_the_tool_tells_it_and_nothing_is_asked(name: str) -> None:
    cases = FakeUseCases(rows=[make_row()])
    with door(cases) as client:
        response = ask(client, BY_VERB[name], {**CALLS[name][1], "not_there": "1"})
    told = problem_of(response, 422)
    assert told["type"] == "urn:opd:problem:config-error"
    result = call(cases, name, {**CALLS[name][1], "not_there": "1"})
    assert text_of(result) == f"{name} was not called. {told['detail']}"
    assert "'not_there' is not known here" in told["detail"] and cases.asked == []


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RunNotFoundError("No run has the id x."), 404, "run-not-found-error"),
        (PathError("prompts_path lies outside.", field="prompts_path"), 422, "path-error"),
        (StateError("It runs."), 409, "state-error"),
        (BudgetFrozenError("Frozen."), 402, "budget-frozen-error"),
        (StoreError("Busy."), 503, "store-error"),
        (HomeError("Not writable."), 503, "home-error"),
        (TrainingError("Diverged."), 500, "training-error"),
    ],
)
def test_a_refusal_has_its_status_and_the_text_of_the_tool(error: OPDError, status: int, kind: str) -> None:
    cases = FakeUseCases(rows=[make_row()], error=error)
    with door(cases) as client:
        response = client.post("/opd/start", json=CONFIG)
    told = problem_of(response, status)
    assert told["detail"] == str(error) and told.get("field") == error.field
    assert told["type"] == f"urn:opd:problem:{kind}"
    assert ("retry-after" in response.headers) == (status == 503)


def test_a_fault_of_the_server_names_the_log_and_shows_no_traceback() -> None:
    with door(FakeUseCases(rows=[make_row()], error=ZeroDivisionError("secret"))) as client:
        told = problem_of(client.get("/opd/status"), 500)
    assert "get_status met an unexpected ZeroDivisionError" in told["detail"] and "secret" not in told["detail"]


def test_numbers_and_words_of_a_query_become_what_the_model_takes() -> None:
    cases = FakeUseCases(rows=[make_row()])
    with door(cases) as client:
        assert client.get("/opd/metrics?run_id=12&points=7&since_step=3&series=eval").status_code == 200
        assert client.get("/opd/runs?limit=2.0&state=failed").status_code == 200
    assert cases.asked[:3] == [
        ("status", "12"),
        ("metrics", "opd_1", "eval", 3, 7),
        ("list", None, "failed", 2, None),
    ]


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("points=7&points=7", 422, "points is given twice"),
        ("points=seven", 422, "points is the text 'seven'"),
        ("points=1.5", 422, "points is 1.5"),
        ("points=%EF%BC%97", 422, "points is the text"),  # a full-width seven
        ("points=+7", 422, "points is the text"),
        ("points=1e999", 422, "points is the text '1e999'"),
        ("since_step=99999999999999999999", 422, "since_step is 99999999999999999999"),  # no SQLite integer
        ("points=NaN", 422, "points is the text 'NaN'"),
        ("run_id=", 422, "run_id"),
        ("run_i=1", 422, "did you mean 'run_id'"),
        ("run_id", 400, "name=value"),
        ("run_id=%FF", 400, "UTF-8"),
        ("&".join(f"a{number}=1" for number in range(100)), 400, "name=value"),
    ],
)
def test_a_query_is_read_strictly(query: str, status: int, told: str) -> None:
    response, cases = get(f"/opd/metrics?{query}")
    assert told in problem_of(response, status)["detail"] and cases.asked == []


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b'{"run_id": "a", "run_id": "b"}', 400, "'run_id' stands twice"),
        (b'{"timeout_seconds": NaN}', 400, "NaN"),
        (b'{"timeout_seconds": Infinity}', 400, "Infinity"),
        (b'{"timeout_seconds": 1e999}', 400, "too large"),
        (b'{"run_id": "\\ud800"}', 400, "surrogate"),
        (b'{"run_id": "\xff"}', 400, "not UTF-8"),
        (b'{"run_id": ' + b"[" * 70 + b"]" * 70 + b"}", 400, "deeper than 64"),
        (b"[" * 100_000, 400, "deeper than 64"),
        (b"[]", 422, "JSON object"),
        (b'"text"', 422, "JSON object"),
        (b'{"run_i": "a"}', 422, "did you mean 'run_id'"),
        (b'{"run_id": 5}', 422, "run_id is 5"),
        (b'{"timeout_seconds": "5"}', 422, "timeout_seconds is the text '5'"),
    ],
)
def test_a_body_is_read_strictly(body: bytes, status: int, told: str) -> None:
    response, cases = post("/opd/stop", body)
    assert told in problem_of(response, status)["detail"] and cases.asked == []


def test_a_list_in_a_query_is_written_with_commas() -> None:
    cases = FakeUseCases(rows=[make_row()])
    with door(cases) as client:
        plots = client.get("/opd/plot?keys=total_loss,kl_loss&run_ids=a").json()["plots"]
        assert "no metric" in problem_of(client.get("/opd/plot?keys=nothing"), 422)["detail"]
    assert [plot["key"] for plot in plots] == ["total_loss", "kl_loss"] and cases.asked[0] == ("status", "a")


def test_a_whole_number_may_be_written_with_a_point() -> None:
    response, cases = post("/opd/resume", b'{"num_training_steps": 40.0}')
    assert response.status_code == 200 and cases.asked == [("resume", None, 40, None, False, None, False)]


def test_a_list_in_a_text_is_taken_from_an_assistants_host_only() -> None:
    response, _ = post("/opd/estimate", json.dumps({**CONFIG, "teacher_examples": "[]"}).encode())
    assert "teacher_examples is the text '[]'" in problem_of(response, 422)["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
)
def test_a_body_of_another_kind_is_refused(headers: dict[str, str]) -> None:
    response, cases = post("/opd/stop", b"{}", headers)
    problem_of(response, 415)
    assert cases.asked == []


def test_json_with_its_charset_is_taken() -> None:
    response, _ = post("/opd/stop", b"{}", {"content-type": 'application/json; charset="UTF-8"'})
    assert response.status_code == 200


def test_a_get_takes_nothing_from_a_body() -> None:
    cases = FakeUseCases(rows=[make_row()])
    with door(cases) as client:
        response = client.request("GET", "/opd/status", json={"run_id": "opd_2"})
    assert "Send no body" in problem_of(response, 422)["detail"] and cases.asked == []


def test_a_post_takes_nothing_from_its_query() -> None:
    response, cases = post("/opd/stop?run_id=a", b"{}")
    assert "JSON body" in problem_of(response, 422)["detail"] and cases.asked == []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.verb)
def test_other_methods_are_refused_with_those_that_are_allowed(route: VerbRoute) -> None:
    allowed = "GET, HEAD" if route.method == "GET" else "POST"
    with door(FakeUseCases(rows=[make_row()])) as client:
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - {route.method}:
            response = client.request(method, route.path, json={} if method == "POST" else None)
            problem_of(response, 405)
            assert ", ".join(sorted(response.headers["allow"].split(", "))) == allowed, method
            assert not [name for name in response.headers if name.startswith("access-control")]


def test_mcp_is_at_its_own_path_and_swallows_no_method() -> None:
    with door(FakeUseCases()) as client:
        assert problem_of(client.put("/mcp"), 405) and problem_of(client.get("/mcp/"), 404)
        listed = client.post(
            "/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
            headers={"accept": "application/json, text/event-stream"},
        )
    assert listed.status_code == 200 and '"name":"opd"' in listed.text


HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def test_a_head_request_gets_the_head_of_the_answer() -> None:
    cases = FakeUseCases(rows=[completed()])
    with door(cases) as client:
        response = client.head("/opd/status")
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"


def test_health_needs_no_token_and_tells_nothing() -> None:
    app = http_app(FakeUseCases(), token=TOKEN, hosts=frozenset({"testserver"}), origins=frozenset())
    with TestClient(app) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for path in ("/openapi.json", "/docs", "/mcp", *(route.path for route in ROUTES)):
            assert problem_of(client.get(path), 401)


@pytest.mark.parametrize("path", ["/", "/opd", "/opd/", "/opd/status/", "/Opd/Status", "/openapi", "/opd/nothing"])
def test_an_unknown_path_says_where_the_routes_are_listed(path: str) -> None:
    response, _ = get(path)
    assert "/openapi.json" in problem_of(response, 404)["detail"]
