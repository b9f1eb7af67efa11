"""What can be said of a request before its body is read: by its size, its path, its headers and its token."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

TOKEN_PROTOCOL = "opd.token."
METHODS = ("GET", "HEAD", "POST", "DELETE")  # DELETE ends an MCP session
OPEN_METHODS = ("GET", "HEAD")
SINGLE_HEADERS = (b"host", b"origin", b"authorization", b"content-length", b"content-type", b"transfer-encoding")


@dataclass(frozen=True)
class GuardPolicy:
    """Who may come in, and how much at once.

    `hosts` are the exact values of the Host header (name and port), `origins` those of the Origin header, which may
    also be absent. `open_paths` need no token and take no body; `stream_paths` are answered for as long as the client
    stays, so they are counted apart from other requests. `methods` is what each path says in Allow. Sizes are in
    bytes, `body_seconds` is the time a whole body may take.
    """

    token: str = field(repr=False)
    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    open_paths: frozenset[str] = frozenset({"/health"})
    stream_paths: frozenset[str] = frozenset({"/opd/events", "/mcp"})
    methods: Mapping[str, str] = field(default_factory=dict)
    max_body_bytes: int = 1_000_000
    body_seconds: float = 10.0
    max_headers: int = 64
    max_header_bytes: int = 16_384
    max_target_bytes: int = 8_192
    max_requests: int = 128
    max_streams: int = 64
    max_sockets: int = 128


class Refusal(Exception):
    """A request that goes no further; the detail never repeats what the caller sent."""

    def __init__(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def check_head(scope: Scope, policy: GuardPolicy) -> None:
    """Everything that can be said of a request before its body is read.

    Raises:
        Refusal: with the status and one or two plain sentences.
    """
    _check_size(scope, policy)
    headers = _single_headers(scope)
    path = _checked_path(scope)
    if headers.get(b"host", b"").decode("latin-1") not in policy.hosts:
        raise Refusal(
            421,
            "The Host header is none of this server's own names. Use the address that 'opd serve --http' printed, or "
            "name this host with --allow-host when you start it.",
        )
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1") not in policy.origins:
        raise Refusal(
            403,
            "Web pages of this origin may not call this server. Call it from a program without an Origin header, or "
            "name the origin with --allow-origin when you start it.",
        )
    if scope["type"] == "http" and scope["method"] not in METHODS:
        allow = (b"allow", policy.methods.get(path, ", ".join(METHODS)).encode())
        raise Refusal(405, f"This server knows only the methods {', '.join(METHODS)}.", allow)
    is_open = scope["type"] == "http" and path in policy.open_paths
    if is_open and scope["method"] not in OPEN_METHODS:
        allow = (b"allow", ", ".join(OPEN_METHODS).encode())
        raise Refusal(405, f"This path takes only the methods {', '.join(OPEN_METHODS)}.", allow)
    if not is_open:
        _check_token(scope, headers, policy.token)
    if scope["type"] == "http":
        has_body = _check_announced_body(headers, policy.max_body_bytes)
        if is_open and has_body:  # waiting for it would let strangers hold the places of those with the token
            raise Refusal(400, "This path takes no body. Leave it out.")


def _check_size(scope: Scope, policy: GuardPolicy) -> None:
    count, size = len(scope["headers"]), sum(len(name) + len(value) for name, value in scope["headers"])
    if count > policy.max_headers or size > policy.max_header_bytes:
        raise Refusal(
            431,
            f"The request has {count} headers of {size} bytes; at most {policy.max_headers} headers and "
            f"{policy.max_header_bytes} bytes are allowed.",
        )
    if len(_raw_path(scope)) + len(scope.get("query_string", b"")) > policy.max_target_bytes:
        raise Refusal(414, f"The address is longer than {policy.max_target_bytes} bytes. Send long values in a body.")


def _single_headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers that decide anything here; one that comes twice may mean something else further in."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        name = name.lower()
        if name in SINGLE_HEADERS:
            if name in found:
                raise Refusal(400, f"The header {name.decode()} stands twice. Send it once.")
            found[name] = value
    if b"content-length" in found and b"transfer-encoding" in found:
        raise Refusal(400, "The request has both Content-Length and Transfer-Encoding. Send one of them.")
    return found


def _raw_path(scope: Scope) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    return raw


def _checked_path(scope: Scope) -> str:
    """The path as it was sent: one spelling for one route, so that no two readers can differ about it."""
    raw = _raw_path(scope)
    decoded = unquote_to_bytes(raw)
    segments = decoded.split(b"/")[1:]
    odd = not raw.startswith(b"/") or any(not 0x20 < byte < 0x7F for byte in raw) or b"\\" in decoded
    odd = odd or decoded.count(b"/") != raw.count(b"/") or any(byte < 0x20 or byte == 0x7F for byte in decoded)
    if odd or any(segment in (b".", b"..") for segment in segments) or b"" in segments[:-1]:
        raise Refusal(400, "The path of this address is not allowed: write it plainly, such as /opd/status.")
    return raw.decode("ascii")


def _check_token(scope: Scope, headers: dict[bytes, bytes], token: str) -> None:
    given = _given_token(scope, headers)
    # an empty secret would let an empty header in
    if given is not None and token and hmac.compare_digest(given, token.encode()):
        return
    how = "as the subprotocol 'opd.token.TOKEN' or " if scope["type"] == "websocket" else ""
    challenge = 'Bearer realm="opd"' + ("" if given is None else ', error="invalid_token"')
    raise Refusal(
        401,
        f"The token is {'missing' if given is None else 'not the right one'}. Send the text of the file token in "
        f"OPD_HOME {how}in the header 'Authorization: Bearer TOKEN'.",
        (b"www-authenticate", challenge.encode()),
    )


def _given_token(scope: Scope, headers: dict[bytes, bytes]) -> bytes | None:
    header = headers.get(b"authorization")
    if header is not None:
        scheme, _, given = header.partition(b" ")
        return given if scheme.lower() == b"bearer" else b""
    offered = [name for name in scope.get("subprotocols", ()) if name.startswith(TOKEN_PROTOCOL)]
    return offered[0].removeprefix(TOKEN_PROTOCOL).encode("utf-8", "surrogateescape") if len(offered) == 1 else None


def _check_announced_body(headers: dict[bytes, bytes], limit: int) -> bool:
    """Whether there is one."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise Refusal(400, "Content-Length is not a number.")
    if len(length) > 18 or int(length) > limit:
        raise too_large(limit)
    has_body = int(length) > 0 or b"transfer-encoding" in headers
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if has_body and media_type != b"application/json":
        raise Refusal(415, "A body must be JSON. Send it with the header 'Content-Type: application/json'.")
    return has_body


def too_large(limit: int) -> Refusal:
    return Refusal(413, f"The body is larger than {limit} bytes. Name files by their paths instead of sending them.")
