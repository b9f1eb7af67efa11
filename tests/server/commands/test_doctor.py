"""`opd doctor`: what hosts were told, the start they would make, the token, the port; and an exit code that is true."""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from opd_core.paths import HomePaths
from server.commands import doctor
from server.commands.doctor import answer_findings, examine
from server.hosts.checks import Finding, Launch, host_findings, http_finding, token_finding
from server.hosts.known import server_command
from server.web.token import read_or_make_token, token_path
from tests.server.fakes import FakeUseCases
from tests.server.records import BLOCKING, make_report

COMMAND, *ARGUMENTS = server_command()


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "OPD_HOME": str(tmp_path / "home")}


def entered(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Cursor's file with our entry."""
    entry: dict[str, Any] = {
        "type": "stdio",
        "command": COMMAND,
        "args": ARGUMENTS,
        "env": {"OPD_HOME": str(tmp_path / "home")},
    }
    entry |= changes
    path = tmp_path / ".cursor/mcp.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"mcpServers": {"opd": entry}}), encoding="utf-8")
    return entry


def found(user: dict[str, str], home: HomePaths) -> tuple[list[Finding], list[Launch]]:
    return host_findings(home, user, "linux")


def test_hosts_without_a_file_are_not_mentioned(user: dict[str, str], home: HomePaths) -> None:
    assert found(user, home) == ([], [])


def test_a_host_that_does_not_know_the_server_is_no_problem(
    user: dict[str, str], home: HomePaths, tmp_path: Path
) -> None:
    entered(tmp_path)
    (tmp_path / ".cursor/mcp.json").write_text("{}")
    (finding,), launches = found(user, home)
    assert finding.is_fine and "opd install cursor" in finding.text and launches == []


def test_an_entry_is_tried_as_it_stands_and_the_same_one_once(
    user: dict[str, str], home: HomePaths, tmp_path: Path
) -> None:
    entry = entered(tmp_path)
    (tmp_path / ".claude.json").write_text(json.dumps({"mcpServers": {"opd": entry}}))
    findings, launches = found(user, home)
    assert [finding.is_fine for finding in findings] == [True, True]
    assert [(launch.command, launch.arguments, launch.environment) for launch in launches] == [
        (COMMAND, tuple(ARGUMENTS), {"OPD_HOME": str(home.home)})
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"command": "opd"}, "absolute path"),
        ({"command": "/nowhere/opd"}, "does not exist"),
        ({"command": "/"}, "does not exist or cannot be run"),
        ({"command": str(Path(__file__).resolve())}, "does not exist or cannot be run"),
        ({"command": "/bin/o\u202epd\0"}, "starts nothing"),
        ({"command": 3}, "starts nothing"),
        ({"args": "serve"}, "starts nothing"),
        ({"args": [1]}, "starts nothing"),
        ({"env": ["OPD_HOME"]}, "starts nothing"),
        ({"env": {"OPD_HOME": 1}}, "starts nothing"),
    ],
)
def test_an_entry_that_cannot_work_is_a_problem_with_its_mending(
    user: dict[str, str], home: HomePaths, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    entered(tmp_path, **changes)
    (finding,), launches = found(user, home)
    assert not finding.is_fine and told in finding.text and "opd install cursor" in finding.text
    assert launches == []


def test_a_file_that_cannot_be_read_is_a_problem(user: dict[str, str], home: HomePaths, tmp_path: Path) -> None:
    entered(tmp_path)
    (tmp_path / ".cursor/mcp.json").write_text("{ // no")
    (finding,), launches = found(user, home)
    assert not finding.is_fine and "not plain JSON" in finding.text and launches == []


def test_an_entry_over_http_is_told_and_not_tried(user: dict[str, str], home: HomePaths, tmp_path: Path) -> None:
    entered(tmp_path)
    (tmp_path / ".cursor/mcp.json").write_text('{"mcpServers": {"opd": {"url": "http://127.0.0.1:8765/mcp"}}}')
    (finding,), launches = found(user, home)
    assert finding.is_fine and "8765" in finding.text and launches == []


@pytest.mark.parametrize(
    ("environment", "told", "is_fine"),
    [
        ({}, "no OPD_HOME", True),
        ({"OPD_HOME": "/other"}, "neither sees the other's runs", True),
        ({"OPD_HOME": "here"}, "not an absolute path", False),
    ],
)
def test_another_home_than_this_terminals_is_told(
    user: dict[str, str], home: HomePaths, tmp_path: Path, environment: dict[str, str], told: str, is_fine: bool
) -> None:
    entered(tmp_path, env=environment)
    findings, _ = found(user, home)
    assert told in findings[0].text and findings[0].is_fine is is_fine


def test_a_key_in_a_hosts_file_is_a_problem_and_is_not_shown(
    user: dict[str, str], home: HomePaths, tmp_path: Path
) -> None:
    entered(tmp_path, env={"OPD_HOME": str(home.home), "ANTHROPIC_API_KEY": "sk-secret"})
    findings, _ = found(user, home)
    assert not findings[-1].is_fine and str(home.home / ".env") in findings[-1].text
    assert "sk-secret" not in str(findings)


def test_the_real_server_answers_in_both_eras_without_an_environment(
    home: HomePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    findings = answer_findings(Launch("Cursor", COMMAND, tuple(ARGUMENTS), {"OPD_HOME": str(home.home)}))
    assert len(findings) == 2
    for finding, spoken in zip(findings, ("current", "2025"), strict=True):
        assert "answered its first call" in finding.text and spoken in finding.text and "Cursor" in finding.text
    assert not home.home.exists(), "a question makes no home"


@pytest.mark.parametrize(
    "script",
    ["import sys; sys.exit(3)", "print('hello')", "raise SystemExit('no module')"],
    ids=["exits", "talks", "fails"],
)
def test_a_program_that_does_not_answer_is_a_problem_told_once(script: str) -> None:
    (finding,) = answer_findings(Launch("Cursor", sys.executable, ("-c", script), {}))
    assert not finding.is_fine and "did not answer" in finding.text and "in a terminal" in finding.text


def test_a_launch_is_made_as_a_host_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("OPD_ROOTS", str(tmp_path))
    seen = tmp_path / "seen.json"
    script = f"import json, os; json.dump([os.getcwd(), dict(os.environ)], open({str(seen)!r}, 'w'))"
    answer_findings(Launch("Cursor", sys.executable, ("-c", script), {"OPD_HOME": "/x"}))
    folder, environment = json.loads(seen.read_text(encoding="utf-8"))
    assert folder == "/" and str(tmp_path) not in environment["PATH"]
    assert environment["OPD_HOME"] == "/x" and "OPD_ROOTS" not in environment


def test_a_program_that_cannot_be_started_is_a_problem(tmp_path: Path) -> None:
    (finding,) = answer_findings(Launch("Cursor", str(tmp_path / "none"), (), {}))
    assert not finding.is_fine and "did not answer" in finding.text


def test_a_slow_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(parameters: object, era: object) -> float:
        return 7.5

    monkeypatch.setattr(doctor, "first_answer_seconds", slow)
    findings = answer_findings(Launch("Cursor", COMMAND, (), {}))
    assert [finding.is_fine for finding in findings] == [False, False] and "7.50 seconds" in findings[0].text


def test_the_token_is_looked_at_and_none_is_made(home: HomePaths) -> None:
    assert token_finding(home).is_fine and not home.home.exists()
    token = read_or_make_token(home)
    finding = token_finding(home)
    assert finding.is_fine and str(token_path(home)) in finding.text and token not in finding.text
    token_path(home).chmod(0o644)
    finding = token_finding(home)
    assert not finding.is_fine and "Remove it" in finding.text


@contextmanager
def listening(body: bytes, status: int = 200) -> Iterator[tuple[int, list[str]]]:
    """A program on a port of this machine; what it was sent."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(f"{self.path} {self.headers}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1], heard
        finally:
            server.shutdown()
            thread.join()


def test_a_server_over_http_is_found_and_is_not_sent_the_token(home: HomePaths) -> None:
    token = read_or_make_token(home)
    with listening(b'{"status": "ok"}') as (port, heard):
        finding = http_finding(port)
    assert finding.is_fine and "answers over HTTP" in finding.text
    assert heard[0].startswith("/health ") and token not in heard[0] and "uthorization" not in heard[0]
    assert "no server over HTTP" in http_finding(port).text


@pytest.mark.parametrize(("body", "status"), [(b"<html>", 200), (b'{"status": "ok"}', 404), (b"[]", 200)])
def test_another_program_on_the_port_is_a_problem(body: bytes, status: int) -> None:
    with listening(body, status) as (port, _):
        finding = http_finding(port)
    assert not finding.is_fine and "another program" in finding.text


@pytest.mark.parametrize(
    ("ready", "answers_well", "code"), [(True, True, 0), (False, True, 1), (True, False, 1)], ids=str
)
def test_the_exit_code_says_whether_all_is_well(
    ready: bool,
    answers_well: bool,
    code: int,
    user: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = make_report() if ready else make_report(problems=(BLOCKING,))
    monkeypatch.setattr(doctor, "HomeUseCases", lambda settings: FakeUseCases(report=report))
    launches: list[Launch] = []

    def told(launch: Launch) -> list[Finding]:
        launches.append(launch)
        return [Finding("the server answered", answers_well)]

    monkeypatch.setattr(doctor, "answer_findings", told)
    monkeypatch.setattr(doctor, "http_finding", lambda port: Finding(f"port {port}"))
    assert examine(4711, user) == code
    output = capsys.readouterr().out
    assert "port 4711" in output and ("All is well" in output) is (code == 0)
    assert [launch.environment for launch in launches] == [{"OPD_HOME": user["OPD_HOME"]}]
    assert os.path.isabs(launches[0].command)  # noqa: PTH117
