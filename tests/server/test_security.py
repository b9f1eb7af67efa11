"""The doors as a whole: every odd header against every route, and the rules that are about the source itself.

S1 … S22 are the controls of the security list; those that belong to one module are tested beside it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient
from starlette.types import Scope

from opd_core.config import RunConfig
from server import cli
from server.app import server_for
from server.arguments.slim import input_schema
from server.guard import Guard
from server.verbs import VERBS
from server.web import app as http_app
from server.web.heads import GuardPolicy
from tests.server.asgi import HOST, JSON_TYPE, ORIGIN, TOKEN, Headers, Reply, ask, head, socket_head
from tests.server.fakes import FakeUseCases
from tests.server.records import CONFIG, make_row

ROOT = Path(__file__).resolve().parents[2]
OUR_HOST = ("host", HOST)
BEARER = ("authorization", f"Bearer {TOKEN}")
MCP_SESSION = "mcp-session-id"


def door(cases: FakeUseCases | None = None, token: str = TOKEN) -> Guard:
    """The real application behind its real guard."""
    app = http_app.http_app(cases or FakeUseCases(), token=token, hosts=frozenset({HOST}), origins=frozenset({ORIGIN}))
    assert isinstance(app, Guard), "the guard is outermost"
    return app


def routes() -> list[tuple[str, str]]:
    """(method, path) of everything the application has, with what it has not."""
    inner: Any = door()._app
    found = [
        (method, route.path)
        for route in inner.routes
        for method in (getattr(route, "methods", None) or ("SOCKET",))
        if method != "HEAD"
    ]
    unknown = [
        ("GET", path) for path in ("/", "/nothing", "/opd", "/opd/", "/mcp/", "/static/x", "/metrics", "/opd/events")
    ]
    return sorted({*found, *unknown, ("SOCKET", "/opd/ws"), ("SOCKET", "/health"), ("SOCKET", "/nothing")})


# name: (status, headers, whether /health is refused as well). Everything else about the request is right.
VARIANTS: dict[str, tuple[int, Headers, bool]] = {
    "no host": (421, [BEARER], True),
    "another host": (421, [("host", "evil.com"), BEARER], True),
    "another port": (421, [("host", "127.0.0.1:9999"), BEARER], True),
    "host without port": (421, [("host", "127.0.0.1"), BEARER], True),
    "host with a tail": (421, [("host", f"{HOST}.evil.com"), BEARER], True),
    "host with a path": (421, [("host", f"{HOST}/?x="), BEARER], True),
    "forwarded host": (421, [("host", "evil.com"), ("x-forwarded-host", HOST), BEARER], True),
    "two hosts": (400, [OUR_HOST, ("host", "evil.com"), BEARER], True),
    "another origin": (403, [OUR_HOST, BEARER, ("origin", "http://evil.com")], True),
    "no page's origin": (403, [OUR_HOST, BEARER, ("origin", "null")], True),
    "an origin on another port": (403, [OUR_HOST, BEARER, ("origin", "http://127.0.0.1:3000")], True),
    "an origin of another scheme": (403, [OUR_HOST, BEARER, ("origin", f"https://{HOST}")], True),
    "two origins": (400, [OUR_HOST, BEARER, ("origin", ORIGIN), ("origin", "http://evil.com")], True),
    "no token": (401, [OUR_HOST], False),
    "a wrong token": (401, [OUR_HOST, ("authorization", f"Bearer {'x' * 43}")], False),
    "a token in capitals": (401, [OUR_HOST, ("authorization", f"Bearer {TOKEN.upper()}")], False),
    "a short token": (401, [OUR_HOST, ("authorization", f"Bearer {TOKEN[:-1]}")], False),
    "another scheme": (401, [OUR_HOST, ("authorization", f"Basic {TOKEN}")], False),
    "a cookie": (401, [OUR_HOST, ("cookie", f"token={TOKEN}")], False),
    "a header of another name": (401, [OUR_HOST, ("x-api-key", TOKEN)], False),
    "an MCP session": (401, [OUR_HOST, (MCP_SESSION, "0" * 32)], False),
    "two tokens": (400, [OUR_HOST, BEARER, ("authorization", "Bearer x")], True),
    "many headers": (431, [OUR_HOST, BEARER, *((f"x-{number}", "1") for number in range(100))], True),
    "a large header": (431, [OUR_HOST, BEARER, ("x", "y" * 20_000)], True),
    "two lengths": (400, [OUR_HOST, BEARER, ("content-length", "0"), ("content-length", "9")], True),
    "a length and chunks": (400, [OUR_HOST, BEARER, ("content-length", "0"), ("transfer-encoding", "chunked")], True),
}
BODY_VARIANTS: dict[str, tuple[int, Headers]] = {
    "five megabytes": (413, [OUR_HOST, BEARER, JSON_TYPE, ("content-length", "5000000")]),
    "a length that is none": (400, [OUR_HOST, BEARER, JSON_TYPE, ("content-length", "-1")]),
    "a form": (415, [OUR_HOST, BEARER, ("content-type", "application/x-www-form-urlencoded"), ("content-length", "3")]),
    "plain text": (415, [OUR_HOST, BEARER, ("content-type", "text/plain"), ("content-length", "3")]),
}


def scope_of(method: str, path: str, headers: Headers) -> Scope:
    if method == "SOCKET":
        scope = socket_head(headers, extensions={"websocket.http.response": {}})
        return {**scope, "path": path, "raw_path": path.encode()}
    return head(path, method, headers, token=None)


def every(pairs: list[tuple[str, str]], headers: Headers) -> Iterator[tuple[str, str, Reply]]:
    """One request to each route."""
    cases, replies = FakeUseCases(rows=[make_row()]), []
    app = door(cases)

    async def go() -> None:
        with anyio.fail_after(60):
            for method, path in pairs:
                replies.append((method, path, await ask(app, scope_of(method, path, headers))))

    anyio.run(go)
    yield from replies
    assert cases.asked == [], "nothing was asked of the house"


def refused(method: str, path: str, reply: Reply, status: int) -> None:
    assert reply.status == status, f"{method} {path}: {reply}"
    assert reply.problem["status"] == status and reply.problem["detail"]
    assert TOKEN not in reply.body.decode() and "evil" not in reply.body.decode()
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_route_refuses_every_odd_header(name: str) -> None:
    """S2, S3, S5."""
    status, headers, health_too = VARIANTS[name]
    pairs = routes()
    assert len(pairs) > 20
    for method, path, reply in every(pairs, headers):
        if (method, path) == ("GET", "/health") and not health_too:
            assert (reply.status, json.loads(reply.body)) == (200, {"status": "ok"}), "it is open, and tells nothing"
        else:
            refused(method, path, reply, status)


@pytest.mark.parametrize("name", BODY_VARIANTS)
def test_every_route_refuses_every_odd_body(name: str) -> None:
    """S4, S5."""
    status, headers = BODY_VARIANTS[name]
    pairs = [(method, path) for method, path in routes() if method != "SOCKET"]
    for method, path, reply in every(pairs, headers):
        refused(method, path, reply, status)


@pytest.mark.parametrize("origin", [ORIGIN, "http://evil.com"])
def test_every_route_refuses_a_preflight_and_grants_nothing(origin: str) -> None:
    """S4."""
    asked = [OUR_HOST, ("origin", origin), ("access-control-request-method", "POST")]
    pairs = [("OPTIONS", path) for method, path in routes() if method != "SOCKET"]
    for method, path, reply in every(pairs, asked):
        refused(method, path, reply, 405 if origin == ORIGIN else 403)


def test_with_the_right_headers_the_same_routes_answer() -> None:
    """Else the table above could pass with a wall in the place of a guard."""
    with TestClient(door(FakeUseCases(rows=[make_row()])), base_url=f"http://{HOST}") as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        for origin in ({}, {"origin": ORIGIN}):
            for path in ("/health", "/openapi.json", "/docs", "/opd/status", "/opd/runs", "/opd/check"):
                response = client.get(path, headers=origin)
                assert response.status_code == 200, path
                assert not [name for name in response.headers if name.startswith("access-control")]
            assert client.post("/opd/estimate", json=CONFIG, headers=origin).status_code == 200


def initialize(client: TestClient, **headers: str) -> Any:
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    accept = {"accept": "application/json, text/event-stream", **headers}
    return client.post("/mcp", json=body, headers=accept)


def test_an_mcp_session_is_no_authority() -> None:
    """S7: the id of a session without the token, and one session's id at a server of another token."""
    with (
        TestClient(door(), base_url=f"http://{HOST}") as client,
        TestClient(door(token="u" * 43), base_url=f"http://{HOST}") as other,
    ):
        client.headers["authorization"], other.headers["authorization"] = f"Bearer {TOKEN}", f"Bearer {'u' * 43}"
        session = initialize(client).headers[MCP_SESSION]
        asked = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        headers = {MCP_SESSION: session, "accept": "application/json, text/event-stream"}
        assert client.post("/mcp", json=asked, headers=headers).status_code == 200
        assert other.post("/mcp", json=asked, headers=headers).status_code == 404
        assert other.post("/mcp", json=asked, headers={**headers, "authorization": BEARER[1]}).status_code == 401
        assert client.post("/mcp", json=asked, headers={**headers, "authorization": ""}).status_code == 401


def test_mcp_sessions_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    """S5."""
    monkeypatch.setattr(http_app, "MAX_MCP_SESSIONS", 3)
    with TestClient(door(), base_url=f"http://{HOST}", headers=dict([BEARER])) as client:
        replies = [initialize(client) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200] * 3 + [503] * 2
    assert [reply.headers.get("retry-after") for reply in replies] == [None] * 3 + ["30"] * 2


def test_an_mcp_session_that_nobody_uses_gives_its_place_back_soon() -> None:
    """S5."""
    server = server_for(FakeUseCases())
    http_app.mcp_route(server, frozenset({HOST}), frozenset())
    assert server.session_manager.session_idle_timeout == 300.0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_serving_other_machines_needs_the_flag(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S1."""
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "home"))
    assert cli.main(["serve", "--http", "--host", host]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "--allow-remote" in said.err and "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == [], "no token is made for a door that does not open"


def test_the_libraries_are_new_enough_for_what_was_found_in_older_ones() -> None:
    """S6, S7, S8."""
    for package, least in (("mcp", (2, 3)), ("starlette", (1, 3))):
        assert tuple(int(part) for part in version(package).split(".")[:2]) >= least
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {"mcp", "starlette", "pydantic", "anthropic", "uvicorn"} <= set(pins), "everything is pinned"


MONEY_AND_POWER = {
    *("base_url", "teacher_base_url", "api_key", "token", "endpoint", "endpoint_url", "monthly_budget_usd"),
    *("roots", "trust_remote_code", "delete", "force", "url", "proxy", "prices_confirmed_on", "command", "env"),
}


def test_no_verb_can_raise_the_installs_budget_move_an_address_or_delete() -> None:
    """S16: only a person at the files or the command line can."""
    for name, verb in VERBS.items():
        assert not any(word in name for word in ("delete", "remove", "publish", "install", "unfreeze", "set_"))
        schema = input_schema(verb.arguments)
        assert schema["additionalProperties"] is False
        names = set(schema["properties"])
        for inner in schema.get("$defs", {}).values():
            names |= set(inner.get("properties", {}))
        assert not MONEY_AND_POWER & names, name


def bounds() -> Iterator[Any]:
    for name, field in RunConfig.model_fields.items():
        for rule in field.metadata:
            for kind in ("ge", "le"):
                limit = getattr(rule, kind, None)
                if limit is not None and not isinstance(limit, str):
                    yield pytest.param(name, kind, limit, id=f"{name} {kind} {limit}")


@pytest.mark.parametrize(("name", "kind", "limit"), list(bounds()))
def test_every_limit_holds_at_the_limit_and_one_beyond(name: str, kind: str, limit: float) -> None:
    """S19."""
    base = {"base_model_path": "m", "prompts_path": "/p.txt"}
    step = 1 if isinstance(limit, int) else max(abs(limit) * 1e-6, 1e-9)
    beyond = limit - step if kind == "ge" else limit + step
    checked = RunConfig.__pydantic_validator__
    assert _said_of(checked, {**base, name: limit}, name) == []
    assert _said_of(checked, {**base, name: beyond}, name) != []


def _said_of(validator: Any, values: dict[str, Any], name: str) -> list[str]:
    from pydantic import ValidationError

    try:
        validator.validate_python(values)
    except ValidationError as error:
        kinds = [(item["loc"], item["type"]) for item in error.errors()]
        return [kind for location, kind in kinds if location == (name,)]
    return []


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "torch.load"),
    *("yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp", "subprocess.getoutput", "sharded_load", "mlx_lm.load"),
    *("multiprocessing.Process", "os.fork"),
}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib", "ftplib"}


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "server").rglob("*.py"), *(ROOT / "opd_core").rglob("*.py")]), ids=lambda path: path.name
)
def test_no_source_runs_what_it_reads(path: Path) -> None:
    """S11, S18: no pickle, no eval, no shell, no code of a model."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, call in calls(tree):
        where = f"{path.name}:{call.lineno} calls {name}"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in FORBIDDEN_CALLS, where
        assert given.get("shell", "False") == "False", where
        assert given.get("trust_remote_code", "False") == "False", where
        assert given.get("allow_pickle", "False") == "False", where
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", where
        if name in ("load_model", "load_tokenizer"):
            assert "trust_remote_code" in ast.unparse(call), where
        if name in ("yaml.load", "load") and "yaml" in name:
            assert "_StrictLoader" in ast.unparse(call), where
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not FORBIDDEN_IMPORTS & imported, path.name


ABSURD = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "not a number": b'{"learning_rate": NaN}',
    "infinite": b'{"learning_rate": 1e999}',
    "endless number": b'{"num_training_steps": ' + b"9" * 5_000 + b"}",
    "twice": b'{"seed": 1, "seed": 2}',
    "not UTF-8": b'{"base_model_path": "\xff"}',
    "half a surrogate": b'{"base_model_path": "\\ud800"}',
    "nothing": b"",
    "list": b"[]",
    "text": b'"x"',
    "nul": b"\0",
    "byte-order mark": b"\xef\xbb\xbf{}",
    "yaml": b"base_model_path: tiny",
}


@pytest.mark.parametrize("name", ABSURD)
@pytest.mark.parametrize("path", ["/opd/start", "/opd/estimate", "/opd/stop", "/opd/compare", "/mcp"])
def test_absurd_json_is_one_clear_refusal_and_no_fault(name: str, path: str) -> None:
    """S17, and row 39 of the faults."""
    cases = FakeUseCases(rows=[make_row()])
    with TestClient(door(cases), base_url=f"http://{HOST}", raise_server_exceptions=False) as client:
        headers = {**dict([BEARER, JSON_TYPE]), "accept": "application/json, text/event-stream"}
        response = client.post(path, content=ABSURD[name], headers=headers)
    assert 400 <= response.status_code < 500, response.text[:200]
    assert len(response.content) < 4_000 and "Traceback" not in response.text
    assert [asked for asked in cases.asked if asked[0] != "status"] == []


def test_the_policy_of_the_door_has_every_cap() -> None:
    """S5: a cap left out would be no cap."""
    policy = door()._policy
    assert isinstance(policy, GuardPolicy)
    for cap in ("max_body_bytes", "body_seconds", "max_headers", "max_header_bytes", "max_target_bytes"):
        assert 0 < getattr(policy, cap) <= 5_000_000
    for cap in ("max_requests", "max_streams", "max_sockets"):
        assert 0 < getattr(policy, cap) <= 1_000
