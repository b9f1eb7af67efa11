"""Clients that others wrote: each starts, follows, stops and compares a run, and reads only the tools' texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from server.verbs import VERBS
from tests.small_runs import configuration
from tests.suites.processes import SERVE, finished

pytestmark = pytest.mark.suite
LONG_STEPS = 1000
"""So many that no run ends before it is stopped."""


def told(python: Path, module: str, house: Path) -> dict[str, object]:
    """Let one client tell the story of a run, with a server over stdio that it starts itself."""
    server = {"command": sys.executable, "args": list(SERVE), "env": {"OPD_HOME": str(house)}}
    request = server | {"configuration": configuration(house, num_training_steps=LONG_STEPS)}
    outcome = finished([python, "-m", f"tests.suites.clients.{module}", json.dumps(request)], house.parent)
    assert outcome.code == 0, outcome.err[-6000:]
    story: dict[str, object] = json.loads(outcome.out.splitlines()[-1])
    return story


def check(story: dict[str, object]) -> None:
    assert story["tools"] == list(VERBS)
    assert f"with {LONG_STEPS} steps" in str(story["started"])
    assert f"of {LONG_STEPS}" in str(story["followed"])
    assert "(by user)" in str(story["stopped"])
    assert "- base: reverse KL" in str(story["compared"]) and "- distilled: reverse KL" in str(story["compared"])


def test_the_clients_of_the_sdk_itself(house: Path) -> None:
    check(told(Path(sys.executable), "sdk", house))


@pytest.mark.parametrize("client_python", ["modern"], indirect=True)
@pytest.mark.parametrize("module", ["fast", "openai_agents"])
def test_fastmcp_and_the_openai_agents_sdk_with_its_five_seconds(client_python: Path, module: str, house: Path) -> None:
    check(told(client_python, module, house))


@pytest.mark.parametrize("client_python", ["langchain"], indirect=True)
def test_langchain_with_version_one_of_the_sdk(client_python: Path, house: Path) -> None:
    check(told(client_python, "langchain", house))
