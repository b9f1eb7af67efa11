"""`opd serve --http` as a process, plain HTTP, a real worker, a tiny real model."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.server.fakes import ERAS, Era, data_of
from tests.small_runs import NEEDS_INSTALLED_PROJECT, configuration, make_home

pytestmark = [pytest.mark.slow, NEEDS_INSTALLED_PROJECT]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A home with one model and one prompt file."""
    return make_home(tmp_path / "home")


def serve(home: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "server.cli", "serve", "--http", *options]
    environment = {"OPD_HOME": str(home), "HOME": str(home.parent), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


@contextmanager
def served(home: Path) -> Iterator[httpx2.Client]:
    """A client of a running server, which is stopped by an interrupt as a person would."""
    process = serve(home, "--port", "0")
    patience = threading.Timer(120, process.kill)
    patience.start()
    try:
        assert process.stderr is not None
        found = re.match(r"Serving on (http://127\.0\.0\.1:\d+); ", process.stderr.readline())
        assert found is not None, process.stderr.read()
        token = (home / "token").read_text(encoding="utf-8").strip()
        with httpx2.Client(
            base_url=found[1], headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        ) as client:
            yield client
        process.send_signal(signal.SIGINT)
        rest = process.communicate()[1]
        assert process.returncode == 130 and "Traceback" not in rest, rest
        assert token not in rest
    finally:
        patience.cancel()
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def good(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert found["summary"] and found["next_step"]
    return found


def ended(client: httpx2.Client, run_id: str) -> dict[str, Any]:
    """Wait until a run has ended."""
    while True:
        status = good(client.get("/opd/wait", params={"run_id": run_id, "timeout_seconds": 30}))
        if not status["timed_out"]:
            return status


def test_the_main_job_over_plain_http(house: Path) -> None:
    with served(house) as client:
        assert client.get("/health", headers={"Authorization": ""}).json() == {"status": "ok"}
        assert client.get("/opd/runs", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert good(client.get("/opd/check"))["ready"]
        assert [model["name"] for model in good(client.get("/opd/models"))["models"]] == ["tiny"]
        assert good(client.post("/opd/estimate", json=configuration(house)))["steps"] == 4

        request = configuration(house, num_training_steps=1000, client_request_id="once")
        run_id = good(client.post("/opd/start", json=request))["run_id"]
        assert good(client.post("/opd/start", json=request))["run_id"] == run_id
        while not good(client.get("/opd/status"))["metrics"]["step"]:
            good(client.get("/opd/wait", params={"timeout_seconds": 0.1}))
        stopped = good(client.post("/opd/stop", json={"run_id": run_id, "timeout_seconds": 30}))
        assert stopped["state"] == "stopped" and stopped["final_step"] >= 1, stopped
        shorter = {"run_id": run_id, "num_training_steps": 1}
        assert client.post("/opd/resume", json=shorter).json()["field"] == "num_training_steps"

        compared = good(client.post("/opd/compare", json={"run_id": run_id, "timeout_seconds": 30}))
        if compared["status"] == "pending":
            ended(client, compared["job_id"])
            compared = good(client.post("/opd/compare", json={"job_id": compared["job_id"]}))
        assert compared["status"] == "completed" and compared["rows"][0]["name"] == "base", compared
        assert good(client.get("/opd/metrics", params={"points": 5}))["run_id"]
        assert len(good(client.get("/opd/runs"))["runs"]) == 2


def test_a_bad_start_is_one_clear_problem_and_the_users_own_home_is_no_root(house: Path) -> None:
    outside = house.parent / "prompts.jsonl"  # in HOME: allowed over standard input, not here
    outside.write_text((house / "prompts.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    with served(house) as client:
        for changes, told in (
            ({"validation_prompts_path": str(outside)}, "outside the folders this server may read"),
            ({"validation_prompts_path": str(house / "none.jsonl")}, "does not exist"),
            ({"base_model_path": "gpt-99"}, "no model"),
        ):
            response = client.post("/opd/start", json=configuration(house, **changes))
            assert response.status_code == 422 and told in response.json()["detail"].lower(), response.text
        assert client.get("/opd/status").status_code == 404
        assert good(client.get("/opd/runs"))["runs"] == []


@pytest.mark.parametrize("era", ERAS)
def test_mcp_is_served_beside_it_in_both_eras(house: Path, era: Era) -> None:
    async def go(url: str, headers: dict[str, str]) -> None:
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
            Client(streamable_http_client(url, http_client=http), mode=era) as client,
        ):
            assert len((await client.list_tools()).tools) >= 12
            assert data_of(await client.call_tool("list_models", {}))["models"][0]["name"] == "tiny"

    with served(house) as client:
        anyio.run(go, str(client.base_url).rstrip("/") + "/mcp", {"Authorization": client.headers["Authorization"]})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--host", "192.0.2.1", "--allow-remote", "--allow-host", "opd.example.org"], "cannot listen on 192.0.2.1"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence_and_exit_code_2(
    house: Path, options: list[str], told: str
) -> None:
    process = serve(house, *options)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and told in error and "Traceback" not in error, error


def test_a_taken_port_is_one_sentence_and_exit_code_2(house: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = serve(house, "--port", str(port))
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and error.count("\n") == 1, error
    assert f"Port {port} of 127.0.0.1 is taken" in error
