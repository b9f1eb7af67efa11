"""Who is refused by a request's head alone, with what, before its body is read."""

from __future__ import annotations

import pytest

from tests.server.asgi import ORIGIN, TOKEN, fetch, head
from tests.server.guarded import JSON, OUR_HOST, POLICY, guarded, refused


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8766",
        "localhost:8765.evil.com",
        "evil.com",
        "evil.com:8765",
        "127.0.0.1:8765@evil.com",
        "127.0.0.1:8765/?x=",
        "a/?x=",
        " 127.0.0.1:8765",
        "0.0.0.0:8765",
        "",
        "127.0.0.1:8765, evil.com",
    ],
)
def test_another_host_is_refused_even_with_the_token(host: str) -> None:
    guard, echo = guarded()
    detail = refused(fetch(guard, head(headers=[("host", host)])), echo, 421)
    assert "--allow-host" in detail and "evil" not in detail


def test_a_request_without_a_host_is_refused() -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(headers=[])), echo, 421)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.com",
        "https://127.0.0.1:8765",
        "http://127.0.0.1",
        "http://127.0.0.1:8766",
        f"{ORIGIN}/",
    ],
)
@pytest.mark.parametrize("path", ["/opd/status", "/health"])
def test_another_origin_is_refused_even_with_the_token(origin: str, path: str) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(path, headers=[OUR_HOST, ("origin", origin)])), echo, 403)


def test_the_servers_own_origin_is_let_in_without_any_cors_header() -> None:
    guard, _ = guarded()
    reply = fetch(guard, head(headers=[OUR_HOST, ("origin", ORIGIN)]))
    assert reply.status == 200
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}t",
        f"Bearer {TOKEN.upper()}",
        f"Bearer  {TOKEN}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xff",
    ],
)
def test_a_missing_or_wrong_token_is_refused_with_a_challenge(authorization: str | None) -> None:
    guard, echo = guarded()
    headers = [OUR_HOST] if authorization is None else [OUR_HOST, ("authorization", authorization)]
    reply = fetch(guard, head(headers=headers, token=None))
    detail = refused(reply, echo, 401)
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "OPD_HOME" in detail and TOKEN not in detail


@pytest.mark.parametrize(
    "where", ["/opd/status?token=", "/opd/status?access_token=", "/opd/status?authorization=Bearer%20"]
)
def test_a_token_in_the_address_is_none(where: str) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(where + TOKEN, token=None)), echo, 401)


def test_an_empty_secret_lets_nobody_in() -> None:
    guard, echo = guarded(token="")
    refused(fetch(guard, head(token="")), echo, 401)


@pytest.mark.parametrize(
    "path", ["/health/", "/health/x", "/HEALTH", "/healthz", "/docs", "/openapi.json", "/metrics", "/"]
)
def test_nothing_but_health_is_open(path: str) -> None:
    guard, echo = guarded()
    assert fetch(guard, head("/health", token=None)).status == 200
    echo.scopes.clear()
    refused(fetch(guard, head(path, token=None)), echo, 401)


def test_health_is_found_by_the_path_as_it_was_sent() -> None:
    guard, echo = guarded()
    refused(fetch(guard, head("/opd/status", raw_path=b"/opd/status", token=None)), echo, 401)
    refused(fetch(guard, head("/health", raw_path=b"/%68ealth", token=None)), echo, 401)
    refused(fetch(guard, head("/opd/start", "POST", [OUR_HOST], token=None, raw_path=b"/opd/start?/health")), echo, 401)


@pytest.mark.parametrize(
    "raw",
    [
        b"/opd/../health",
        b"/opd/%2e%2e/health",
        b"/health/.",
        b"//health",
        b"/opd//status",
        b"/opd%2fstatus",
        b"/opd\\status",
        b"/opd%5cstatus",
        b"/opd/status%00",
        b"/opd/status%0d%0aX:1",
        b"/opd/\xc3\xa4",
        b"http://evil.com/opd/status",
        b"*",
    ],
)
def test_a_path_that_could_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head("/opd/status", raw_path=raw)), echo, 400)


@pytest.mark.parametrize(
    "extra",
    [
        [OUR_HOST],
        [("host", "evil.com")],
        [("authorization", f"Bearer {TOKEN}")],
        [("content-length", "0"), ("content-length", "5")],
        [("origin", ORIGIN), ("origin", "http://evil.com")],
        [("content-length", "0"), ("transfer-encoding", "chunked")],
    ],
)
def test_a_header_that_decides_something_may_come_once(extra: list[tuple[str, str]]) -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(headers=[OUR_HOST, *extra])), echo, 400)


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "get"])
def test_other_methods_are_refused_and_a_preflight_learns_nothing(method: str) -> None:
    guard, echo = guarded()
    headers = [OUR_HOST, ("origin", ORIGIN), ("access-control-request-method", "POST")]
    reply = fetch(guard, head(method=method, headers=headers, token=None))
    refused(reply, echo, 405)
    assert reply.headers["allow"] == "GET, HEAD, POST, DELETE"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_json_is_refused(media_type: str) -> None:
    guard, echo = guarded()
    headers = [OUR_HOST, ("content-type", media_type), ("content-length", "2")]
    refused(fetch(guard, head("/opd/start", "POST", headers), [b"{}"]), echo, 415)
    assert fetch(guard, head("/opd/stop", "POST", [OUR_HOST])).status == 200, "no body needs no type"


@pytest.mark.parametrize(("size", "status"), [(POLICY.max_body_bytes, 200), (POLICY.max_body_bytes + 1, 413)])
def test_the_body_is_capped_by_its_announced_length(size: int, status: int) -> None:
    guard, _ = guarded()
    headers = [OUR_HOST, JSON, ("content-length", str(size))]
    assert fetch(guard, head("/opd/start", "POST", headers)).status == status


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "٣".encode().decode("latin-1"), "9" * 4000])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    guard, echo = guarded()
    reply = fetch(guard, head("/opd/start", "POST", [OUR_HOST, JSON, ("content-length", length)]))
    assert reply.status == (413 if length.startswith("9") else 400) and not echo.scopes


@pytest.mark.parametrize(("count", "status"), [(62, 200), (63, 431)])
def test_the_number_of_headers_is_capped(count: int, status: int) -> None:
    guard, _ = guarded()
    headers = [OUR_HOST, *((f"x-{number}", "1") for number in range(count))]  # and Authorization
    assert fetch(guard, head(headers=headers)).status == status


def test_the_size_of_headers_and_address_is_capped() -> None:
    guard, echo = guarded()
    refused(fetch(guard, head(headers=[OUR_HOST, ("x", "y" * POLICY.max_header_bytes)])), echo, 431)
    refused(fetch(guard, head("/opd/status?run_id=" + "y" * 8_192)), echo, 414)
