"""What every independent client does: start a run, follow it, stop it and compare, knowing only the texts it reads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

Call = Callable[[str, dict[str, Any]], Awaitable[str]]
"""Calls a tool by name and gives the text that a model would read."""
WAIT_SECONDS = 3.0
"""Below the five seconds after which the most impatient host gives a call up."""
MOST_CALLS = 60


@dataclass(frozen=True)
class Story:
    """What a client saw, in the server's own words."""

    started: str
    followed: str
    stopped: str
    compared: str


async def tell(call: Call, configuration: dict[str, Any]) -> Story:
    """Start, follow, stop, compare."""
    started = await call("start_distillation", configuration)
    run_id = _found(r"\bRun (\S+) is accepted", started)
    wait = {"run_id": run_id, "timeout_seconds": WAIT_SECONDS}
    followed = await _until(r"at step [1-9]", lambda: call("wait_for_run", wait))
    stopped = await _until(rf"Run {run_id} stopped", lambda: call("stop_distillation", wait))
    pending = await call("compare_adapters", {"run_id": run_id, "timeout_seconds": WAIT_SECONDS})
    if not re.search(r"^- distilled", pending, re.MULTILINE):
        again = {"job_id": _found(r"with job_id (\S+)", pending), "timeout_seconds": WAIT_SECONDS}
        pending = await _until(r"(?m)^- distilled", lambda: call("compare_adapters", again))
    return Story(started, followed, stopped, pending)


async def _until(pattern: str, ask: Callable[[], Awaitable[str]]) -> str:
    for _ in range(MOST_CALLS):
        text = await ask()
        if re.search(pattern, text):
            return text
    raise AssertionError(f"no text with {pattern!r} after {MOST_CALLS} calls; the last: {text}")


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"no {pattern!r} in: {text}"
    return match[1].rstrip(".")


def given() -> dict[str, Any]:
    """The one argument of a client's program: command, arguments and environment of the server, and a configuration."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    return told


def show(story: Story, tools: list[str]) -> None:
    """What a client's program prints."""
    print(json.dumps(asdict(story) | {"tools": tools}))
