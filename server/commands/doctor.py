"""`opd doctor`: what `check_setup` says, what the hosts were told, and the server as they start it, timed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import anyio
from mcp import StdioServerParameters
from mcp.client import Client

from opd_core.types import clean_text
from server.answers.setup import setup, setup_facts
from server.home_use_cases import HomeUseCases
from server.hosts.checks import Finding, Launch, host_findings, http_finding, token_finding
from server.hosts.known import server_command
from server.settings import Settings, read_settings

ANSWER_SECONDS = 60
# The shortest time a known host waits for an answer (the OpenAI Agents SDK's default).
PATIENCE_SECONDS = 5.0
# What a program that was started from the desktop has.
BARE_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
ERAS: dict[Literal["auto", "legacy"], str] = {"auto": "current protocol", "legacy": "2025 protocol"}


def server_parameters(settings: Settings, environment: dict[str, str]) -> StdioServerParameters:
    """The server as a host would start it: almost no environment but OPD_HOME and what a person set for it."""
    command, *arguments = server_command()
    ours = {name: value for name, value in environment.items() if name.startswith(("OPD_", "HF_"))}
    return StdioServerParameters(command=command, args=arguments, env={**ours, "OPD_HOME": str(settings.home.home)})


def bare_parameters(launch: Launch) -> StdioServerParameters:
    """A launch as a host carries it out: in the root folder, with HOME, a bare PATH and what its entry sets."""
    return StdioServerParameters(
        command=launch.command, args=list(launch.arguments), env={"PATH": BARE_PATH, **launch.environment}, cwd="/"
    )


async def first_answer_seconds(parameters: StdioServerParameters, era: Literal["auto", "legacy"] = "auto") -> float:
    """Time from starting the process to the answer of its first tool call."""
    started = time.perf_counter()
    with anyio.fail_after(ANSWER_SECONDS):
        async with Client(parameters, mode=era) as client:
            await client.call_tool("list_runs", {"limit": 1})
            return time.perf_counter() - started


@dataclass
class Report:
    """Prints findings as they are made; `is_fine` until one says that something is wrong."""

    is_fine: bool

    def tell(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            print(f"- {finding.text}" if finding.is_fine else f"- Problem: {finding.text}", flush=True)
            self.is_fine = self.is_fine and finding.is_fine


def examine(port: int = 8765, environment: Mapping[str, str] | None = None) -> int:
    """Print the findings; 0 when all is well, else 1.

    Args:
        port: where a server over HTTP would be on this machine.
        environment: instead of the process environment.
    """
    environment = os.environ if environment is None else environment
    settings = read_settings(environment)
    answer = setup(HomeUseCases(settings).check_setup(), settings.problems)
    print(answer.summary)
    print("\n".join(setup_facts(answer)))
    report = Report(answer.ready)
    findings, launches = host_findings(settings.home, environment, sys.platform)
    report.tell(findings)
    if not launches:
        command, *arguments = server_command()
        launches = [Launch("a host", command, tuple(arguments), {"OPD_HOME": str(settings.home.home)})]
    for launch in launches:
        report.tell(answer_findings(launch))
    report.tell([token_finding(settings.home), http_finding(port)])
    print("All is well." if report.is_fine else "Something needs to be mended; see the problems above.")
    return 0 if report.is_fine else 1


def answer_findings(launch: Launch) -> list[Finding]:
    """Start the server once for each era of the protocol and time its first answer."""
    findings = []
    for era, spoken in ERAS.items():
        how = f"the server as {launch.who} starts it ({spoken})"
        try:
            seconds = anyio.run(first_answer_seconds, bare_parameters(launch), era)
        except Exception as error:  # whatever a program that is not our server may do to a client
            why = _reason(error)
            command = " ".join([launch.command, *launch.arguments])
            findings.append(
                Finding(f"{how} did not answer: {why}. Run this in a terminal to see why: {command}", is_fine=False)
            )
            break  # the other era would fail alike, perhaps after another minute
        slow = seconds > PATIENCE_SECONDS
        note = f", more than the {PATIENCE_SECONDS:g} seconds some hosts wait; is the machine busy?" if slow else ""
        findings.append(Finding(f"{how} answered its first call {seconds:.2f} seconds after the start{note}", not slow))
    return findings


def _reason(error: BaseException) -> str:
    """The innermost reason, without the groups that tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"it took more than {ANSWER_SECONDS} seconds"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return clean_text(told or type(error).__name__, 200).rstrip(".")
