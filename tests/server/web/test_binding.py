"""Where the HTTP door may stand, and the exact names it answers to."""

from __future__ import annotations

import pytest

from opd_core.errors import ConfigError
from server.web.binding import bind, is_loopback

LOCAL = {"127.0.0.1:8765", "localhost:8765", "[::1]:8765"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_no_flag(host: str) -> None:
    made = bind(host, 8765)
    assert made.hosts == LOCAL and made.origins == {f"http://{name}" for name in LOCAL}
    assert not made.is_remote and made.warning is None


def test_another_loopback_address_answers_to_itself() -> None:
    assert bind("127.0.0.2", 8765).hosts == {*LOCAL, "127.0.0.2:8765"}


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "",
        "0",
        "*",
        "192.168.1.5",
        "10.0.0.1",
        "::ffff:127.0.0.1",
        "127.1",
        "2130706433",
        "example.org",
    ],
)
def test_an_address_others_reach_is_refused_without_the_flag(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="--allow-remote"):
        bind(host, 8765)
    with pytest.raises(ConfigError, match="--allow-remote"):
        bind(host, 8765, names=["opd.example.org"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", ""])
def test_with_the_flag_somebody_must_be_named(host: str) -> None:
    with pytest.raises(ConfigError, match="--allow-host"):
        bind(host, 8765, allow_remote=True)
    made = bind(host, 8765, allow_remote=True, names=["opd.example.org"], origins=["https://opd.example.org"])
    assert made.hosts == {*LOCAL, "opd.example.org:8765", "opd.example.org"}
    assert "https://opd.example.org" in made.origins and "http://evil.example.org" not in made.origins
    assert made.is_remote and made.warning is not None and "token" in made.warning


def test_one_address_of_this_machine_is_its_own_name() -> None:
    assert "192.168.1.5:8765" in bind("192.168.1.5", 8765, allow_remote=True).hosts
    assert "[2001:db8::1]:8765" in bind("2001:db8::1", 8765, allow_remote=True).hosts


def test_a_named_port_is_the_only_port() -> None:
    hosts = bind("127.0.0.1", 8765, names=["opd.example.org:8443"]).hosts
    assert hosts == {*LOCAL, "opd.example.org:8443"}


def test_port_80_is_left_out_by_clients() -> None:
    assert bind("127.0.0.1", 80).hosts == {
        *("127.0.0.1:80", "localhost:80", "[::1]:80"),
        *("127.0.0.1", "localhost", "[::1]"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "*.example.org",
        "http://example.org",
        "example.org/",
        "a b",
        "",
        "-x",
        "example.org:",
        "\x1b[2Jx",
        "x" * 300,
    ],
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--allow-host") as caught:
        bind("127.0.0.1", 8765, names=[name])
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("origin", ["*", "null", "x.org", "https://x.org/", "HTTPS://x.org", "file://x", ""])
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="--allow-origin"):
        bind("127.0.0.1", 8765, origins=[origin])


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="--port"):
        bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:8765"), ("::1", "http://[::1]:8765")])
def test_the_address_is_told_as_a_client_needs_it(host: str, url: str) -> None:
    assert bind(host, 8765).url == url
