"""Nothing that can be called, set, seen or read is without words in the documents."""

from __future__ import annotations

import re
from typing import get_args

import anyio
import pytest
from mcp.client import Client

from opd_core.config import RunConfig
from opd_core.paths import HomePaths
from opd_core.settings import FILE_ONLY, KEY_VARIABLE, KNOWN, Settings
from opd_core.state.metrics import METRICS
from opd_core.types import EndReason, JobKind, RunState
from scripts.reference import FILE, reference
from scripts.reference_doors import commands, error_kinds, figures, route_paths
from scripts.reference_meanings import END_REASONS, KINDS, OWN_ROUTES, SETTINGS, STATES, findings
from server.app import build_server
from server.live.progress import ProgressData
from server.routes import ROUTES

PAGE = FILE.read_text(encoding="utf-8")
GUIDE = FILE.with_name("OPD_USER_GUIDE.md").read_text(encoding="utf-8")
README = (FILE.parent.parent / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """What stands under one heading of the reference."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> set[str]:
    """The names in the first column of tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))


def test_the_reference_is_what_the_models_say_now() -> None:
    assert reference() == PAGE, "docs/OPD_API_REFERENCE.md is stale: run make reference"


def test_the_reference_is_the_same_every_time() -> None:
    assert reference() == reference()


def test_every_tool_resource_and_prompt_of_the_server_is_documented(home: HomePaths) -> None:
    """Asked of the server itself, as a host would."""

    async def offered() -> tuple[set[str], set[str]]:
        async with Client(build_server(Settings(home=home))) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            shown = {resource.uri for resource in (await client.list_resources()).resources}
            shown |= {each.uri_template for each in (await client.list_resource_templates()).resource_templates}
            return tools, {*map(str, shown), *(prompt.name for prompt in (await client.list_prompts()).prompts)}

    tools, others = anyio.run(offered)
    assert tools == set(re.findall(r"^### (\w+)$", section("Tools"), re.MULTILINE))
    assert others == rows(section("Resources and prompts"))
    assert all(f"`{tool}`" in README for tool in tools)


def test_every_route_of_the_server_is_documented() -> None:
    paths = {path for _, path in route_paths()}
    assert paths == rows_of_paths(section("HTTP"))
    assert paths == {route.path for route in ROUTES} | OWN_ROUTES.keys()


def rows_of_paths(text: str) -> set[str]:
    """The second column of the table of routes."""
    return set(re.findall(r"^\| [^|`]+ \| `([^`]+)` \|", text, re.MULTILINE))


def test_every_setting_of_a_run_and_of_the_installation_is_documented() -> None:
    assert rows(section("Settings of a run")) == RunConfig.model_fields.keys()
    assert rows(section("Settings of the installation")) == SETTINGS.keys()
    assert SETTINGS.keys() == {KEY_VARIABLE, "OPD_HOME", *KNOWN, *FILE_ONLY}
    assert all(name in GUIDE for name in SETTINGS)


@pytest.mark.parametrize(
    ("kind", "meanings"), [(RunState, STATES), (EndReason, END_REASONS), (JobKind, KINDS)], ids=["state", "end", "kind"]
)
def test_every_state_and_end_reason_is_documented(kind: object, meanings: dict[str, str]) -> None:
    assert meanings.keys() == set(get_args(kind)) and all(meanings.values())
    assert meanings.keys() <= rows(section("States and end reasons"))


def test_every_metric_figure_and_finding_is_documented() -> None:
    assert rows(section("Metrics")) == METRICS.keys()
    assert all(metric.unit and metric.meaning for metric in METRICS.values())
    shown = figures()
    assert rows(section("Prometheus figures")) == {name for name, _, _ in shown}
    assert {"opd_run_step", "opd_run_spent_usd", "opd_month_spent_usd"} <= {name for name, _, _ in shown}
    assert rows(section("Diagnoses")) == findings().keys() and len(findings()) > 12
    assert ProgressData.model_fields.keys() <= rows(section("Live messages"))


def test_every_command_and_each_of_its_options_is_documented() -> None:
    text = section("Commands")
    assert set(re.findall(r"^### opd (\S+)$", text, re.MULTILINE)) == commands().keys()
    for name, command in commands().items():
        own = text.partition(f"### opd {name}\n")[2].partition("\n### ")[0]
        options = {option for action in command._actions for option in action.option_strings} - {"-h", "--help"}
        assert all(option in own for option in options), name
        assert f"opd {name}" in README or f"opd {name}" in GUIDE, f"neither README nor user guide speaks of opd {name}"


def test_every_kind_of_error_is_documented() -> None:
    assert len(rows(section("Errors"))) == len(error_kinds())
