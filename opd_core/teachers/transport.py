"""The way to the provider: one origin, no proxies, no redirects, and a key that is seen by nothing but the socket.

The official client is given a placeholder instead of the key. The real one is looked up at each call and put on a
copy of the request below the client, so that no exception, log line or repr of it can hold it.
Headers that the environment could add to the client (ANTHROPIC_CUSTOM_HEADERS) are dropped there too.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Callable

import anthropic
import httpx2

from opd_core.errors import ConfigError, TeacherUnavailableError
from opd_core.message_params import API_VERSION
from opd_core.types import clean_text

DEFAULT_BASE_URL = "https://api.anthropic.com"
KEY_VARIABLE = "ANTHROPIC_API_KEY"
CONNECT_SECONDS = 10.0
_LIKE_A_KEY = re.compile(r"sk-ant-[A-Za-z0-9_-]{16,}")
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_CARRIES_IPV4 = tuple(
    ipaddress.IPv6Network(net)
    for net in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
)
"""IPv6 networks whose addresses stand for IPv4 ones, private ones among them."""
_PLACEHOLDER = "set-below-the-client"
_HEADERS_SENT = {
    *("accept", "accept-encoding", "connection", "content-length", "content-type"),
    *("host", "transfer-encoding", "user-agent"),
}

Transport = Callable[[], httpx2.AsyncBaseTransport]


def check_base_url(text: str) -> str:
    """The address of the provider without a final slash; https, or http to this machine (a test's endpoint).

    A numeric address is judged by what it means, however it is spelled. What a name resolves to is not looked at: it
    may change at any moment, and https proves that the right server answers.

    Raises:
        ConfigError: any other scheme, user names, a path, a query, or an address that is not public.
    """
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, TypeError) as error:
        raise _bad_base_url(text) from error
    address = _address(url.host)
    loopback = url.host == "localhost" or (address is not None and address.is_loopback)
    public = bool(_HOST_NAME.fullmatch(url.host)) if address is None else loopback or _is_public(address)
    plain = not (url.userinfo or url.query or url.fragment) and url.path in ("", "/")
    if not (plain and public and (url.scheme == "https" or (url.scheme == "http" and loopback))):
        raise _bad_base_url(text)
    return str(url).rstrip("/")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """What a numeric host means to the system's resolver, which takes 127.1, 0x7f000001 and 2130706433 for one."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    carries_ipv4 = address.version == 6 and any(address in network for network in _CARRIES_IPV4)
    return address.is_global and not address.is_multicast and not carries_ipv4


def _bad_base_url(text: str) -> ConfigError:
    return ConfigError(
        f"The teacher's address {clean_text(str(text), 100)!r} in settings.toml is not allowed: use "
        f"{DEFAULT_BASE_URL!r}, or another https address without user name, path or query."
    )


def key_from_environment() -> str | None:
    """What the environment holds now."""
    return os.environ.get(KEY_VARIABLE)


class ApiKey:
    """Looks the key up each time it is needed and keeps it nowhere.

    Args:
        find: gives the key as it is now, or None.
    """

    def __init__(self, find: Callable[[], str | None] = key_from_environment) -> None:
        self._find = find

    def read(self) -> str:
        """The key.

        Raises:
            TeacherUnavailableError: there is none, or it cannot be one; its text is not shown.
        """
        key = self._key()
        if not key:
            raise TeacherUnavailableError(
                f"{KEY_VARIABLE} is not set. Put it into the environment or into OPD_HOME/.env and resume the run."
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise TeacherUnavailableError(
                f"{KEY_VARIABLE} holds characters that no key has, such as spaces. Set it again and resume the run."
            )
        return key

    def redact(self, text: str) -> str:
        """The text without the key, should a server have sent it back, and without what looks like a key of theirs."""
        key, mark = self._key(), f"[{KEY_VARIABLE}]"
        return _LIKE_A_KEY.sub(mark, text.replace(key, mark) if key else text)

    def _key(self) -> str:
        return (self._find() or "").strip()


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


def direct_transport() -> httpx2.AsyncBaseTransport:
    """A connection of its own for each request.

    A kept connection can be closed by the server just as a request goes out; what became of that request is then
    unknown and would have to be paid in full.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(verify=_ssl_context(), trust_env=False, retries=0, limits=limits)


class FixedOrigin(httpx2.AsyncBaseTransport):
    """Sends to one origin only, with the key and with the headers the protocol needs."""

    def __init__(self, base_url: str, key: ApiKey, inner: httpx2.AsyncBaseTransport) -> None:
        self._origin = httpx2.URL(base_url)
        self._key = key
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a copy of the request that carries the key."""
        url = request.url
        if (url.scheme, url.host, url.port) != (self._origin.scheme, self._origin.host, self._origin.port):
            raise httpx2.ConnectError(f"refused to connect to {url.host!r}")
        headers = {name: value for name, value in request.headers.items() if name.lower() in _HEADERS_SENT}
        headers["anthropic-version"] = API_VERSION
        headers["authorization"] = f"Bearer {self._key.read()}"
        copy = httpx2.Request(
            request.method, url, headers=headers, stream=request.stream, extensions=request.extensions
        )
        return await self._inner.handle_async_request(copy)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def open_client(base_url: str, key: ApiKey, timeout_seconds: float, transport: Transport) -> anthropic.AsyncAnthropic:
    """The official client: no retries of its own, nothing from the environment. Close it when done."""
    timeout = httpx2.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
    http_client = httpx2.AsyncClient(
        transport=FixedOrigin(base_url, key, transport()), trust_env=False, follow_redirects=False, timeout=timeout
    )
    return anthropic.AsyncAnthropic(
        api_key=_PLACEHOLDER,
        base_url=base_url,
        max_retries=0,
        timeout=timeout,
        http_client=http_client,
        open_telemetry=False,
    )
