"""The Inspector's command line: it lists and calls every tool, over both transports, in both eras of the protocol."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.verbs import VERBS
from tests.small_runs import configuration
from tests.suites.processes import INSPECTOR, NODE_PROGRAM, SERVE, SERVE_HTTP, Outcome, finished, served

pytestmark = [pytest.mark.suite, pytest.mark.usefixtures("node")]
ERAS = ("modern", "legacy")
TRANSPORTS = ("stdio", "http")
REFUSED_CODE = 5
"""What the Inspector ends with when a tool's answer is an error."""
LONG_STEPS = 1000
"""So many that no run ends before it is stopped."""
MOST_LOOKS = 60


def calls(home: Path) -> list[tuple[str, dict[str, Any]]]:
    """Calls of every tool, in an order in which each has something to answer and no run is left behind."""
    configured = configuration(home, num_training_steps=LONG_STEPS)
    return [
        ("check_setup", {}),
        ("list_models", {}),
        ("inspect_prompts", {"prompts_path": str(home / "prompts.jsonl"), "base_model_path": "tiny"}),
        ("estimate_cost", configured),
        ("start_distillation", configured),
        ("get_status", {}),
        ("stop_distillation", {"timeout_seconds": 50}),
        ("resume_distillation", {}),
        ("stop_distillation", {"timeout_seconds": 50}),
        ("wait_for_run", {}),
        ("get_metrics", {"points": 5}),
        ("plot_metrics", {}),
        ("read_log", {"mode": "tail"}),
        ("diagnose_run", {}),
        ("list_runs", {"limit": 5}),
        ("export_report", {}),
        ("compare_adapters", {"timeout_seconds": 50}),
        ("probe_teacher", configured),
    ]


# A call that a tool must refuse, and what the refusal has to say.
REFUSED = {"probe_teacher": "it needs teacher_kind 'claude'"}


class Inspector:
    """The Inspector with its target: a command to start, or an address."""

    def __init__(self, folder: Path, era: str, target: list[str]) -> None:
        self._folder, self._era, self._target = folder, era, target

    def ask(self, *options: str) -> Outcome:
        """One run of the program."""
        cli = [str(NODE_PROGRAM), str(INSPECTOR), "--cli", *options, "--format", "json", "--protocol-era", self._era]
        return finished([*cli, *self._target], self._folder)

    def call(self, tool: str, arguments: dict[str, Any]) -> Outcome:
        """One call of one tool."""
        return self.ask("--method", "tools/call", "--tool-name", tool, "--tool-args-json", json.dumps(arguments))


@contextmanager
def inspecting(house: Path, transport: str, era: str) -> Iterator[Inspector]:
    if transport == "stdio":
        yield Inspector(house.parent, era, ["-e", f"OPD_HOME={house}", sys.executable, "--", *SERVE])
        return
    with served(house, SERVE_HTTP) as server:
        token = ["--header", f"Authorization: Bearer {server.token}"]
        yield Inspector(house.parent, era, ["--server-url", f"{server.url}/mcp", "--transport", "http", *token])


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_tool_is_listed_without_a_schema_problem_and_can_be_called(house: Path, transport: str, era: str) -> None:
    with inspecting(house, transport, era) as inspector:
        listed = inspector.ask("--method", "tools/list", "--strict")
        assert listed.code == 0 and not problems(listed.err), listed.err
        assert [tool["name"] for tool in json.loads(listed.out)["result"]["tools"]] == list(VERBS)
        assert {tool for tool, _ in calls(house)} == VERBS.keys()
        for tool, arguments in calls(house):
            check(tool, called(inspector, tool, arguments))
        mistaken = inspector.call("start_distillation", {"batch_sise": 3})
        assert mistaken.code == REFUSED_CODE and "did you mean 'batch_size'" in mistaken.out.lower(), mistaken


def called(inspector: Inspector, tool: str, arguments: dict[str, Any]) -> Outcome:
    """One call; a look at the run is repeated until it has made a step.

    In the newer era a wait is a task that the Inspector follows to the end of the run, however short it was asked.
    """
    outcome = inspector.call(tool, arguments)
    for _ in range(MOST_LOOKS):
        if tool != "get_status" or re.search(r"at step [1-9]", outcome.out):
            break
        outcome = inspector.call(tool, arguments)
    return outcome


def problems(err: str) -> list[str]:
    """The lines of the Inspector's schema report; a server may say something of its own there."""
    return [line for line in err.splitlines() if line.startswith(("Warning: tool", "Error: tool"))]


def check(tool: str, outcome: Outcome) -> None:
    """An answer has a text that stands alone and data that says the same; a refusal says what to do, in words."""
    result = json.loads(outcome.out)["result"]
    text = "\n".join(block["text"] for block in result["content"] if block["type"] == "text")
    assert text and "Traceback" not in text, text
    if tool in REFUSED:
        assert outcome.code == REFUSED_CODE and REFUSED[tool] in text, text
        return
    assert outcome.code == 0 and not result.get("isError"), text
    if VERBS[tool].shows_image:
        assert [block["type"] for block in result["content"]].count("image") == 1
    else:
        assert result["structuredContent"]["summary"] and result["structuredContent"]["next_step"]
