"""`opd doctor`: what `check_setup` says, and how fast the server answers when a host starts it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import anyio
from mcp import StdioServerParameters
from mcp.client import Client

from server import answers
from server.replies import setup_facts
from server.settings import Settings, read_settings
from server.use_cases import HomeUseCases

ANSWER_SECONDS = 60


def server_command() -> list[str]:
    """How a host starts the server: the `opd` beside this Python, else the module itself."""
    script = Path(sys.executable).with_name("opd")
    return [str(script), "serve"] if script.is_file() else [sys.executable, "-P", "-m", "server.cli", "serve"]


def server_parameters(settings: Settings, environment: dict[str, str]) -> StdioServerParameters:
    """The server as a host would start it: almost no environment but OPD_HOME and what a person set for it."""
    command, *arguments = server_command()
    ours = {name: value for name, value in environment.items() if name.startswith(("OPD_", "HF_"))}
    return StdioServerParameters(command=command, args=arguments, env={**ours, "OPD_HOME": str(settings.home.home)})


async def first_answer_seconds(parameters: StdioServerParameters) -> float:
    """Time from starting the process to the answer of its first tool call."""
    started = time.perf_counter()
    with anyio.fail_after(ANSWER_SECONDS):
        async with Client(parameters) as client:
            await client.call_tool("list_runs", {"limit": 1})
            return time.perf_counter() - started


def examine() -> int:
    """Print the findings; 0 when a run could start, else 1."""
    settings = read_settings()
    cases = HomeUseCases(settings)
    answer = answers.setup(cases.check_setup(), settings.problems)
    print(answer.summary)
    print("\n".join(setup_facts(answer)))
    try:
        seconds = anyio.run(first_answer_seconds, server_parameters(settings, dict(os.environ)))
        print(f"- the server answered its first call {seconds:.2f} seconds after it was started")
    except (OSError, TimeoutError) as error:
        print(f"- the server did not answer: {error}")
        return 1
    return 0 if answer.ready else 1
