"""Prompts and completions: they name real tools, know real runs, and an unknown one is the caller's error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    PromptReference,
    ResourceTemplateReference,
    TextContent,
)

from opd_core.adapter_files import AdapterInfo
from opd_core.control.models import LocalModels
from opd_core.errors import HomeError
from server.app import server_for
from server.prompts import PROMPTS
from server.resources import run_uri
from server.verbs import VERBS
from tests.server.fakes import ERAS, Era, FakeUseCases
from tests.server.protocol.test_tasks import KnownRuns
from tests.server.records import completed, make_row

ARGUMENTS: dict[str, dict[str, str]] = {
    "distill_my_adapter": {"adapter_path": "/adapters/mine", "prompts_path": "/data/p.jsonl"},
    "review_run": {"run_id": "opd_1"},
    "compare_runs": {"run_a": "opd_1", "run_b": "opd_2"},
    "after_fine_tune": {"adapter_path": "/adapters/mine"},
}


def runs() -> KnownRuns:
    return KnownRuns(rows=[completed(), make_row(run_id="opd_2")])


def text_of(cases: FakeUseCases, name: str, arguments: dict[str, str] | None = None, era: Era = "auto") -> str:
    """What a prompt says.

    Raises:
        MCPError: refused.
    """

    async def go() -> str | MCPError:
        async with Client(server_for(cases), mode=era) as client:
            try:
                (message,) = (await client.get_prompt(name, arguments)).messages
            except MCPError as error:
                return error
            assert message.role == "user" and isinstance(message.content, TextContent)
            return message.content.text

    outcome = anyio.run(go)
    if isinstance(outcome, MCPError):
        raise outcome
    return outcome


@pytest.mark.parametrize("era", ERAS)
def test_every_prompt_is_listed_with_title_description_and_arguments(era: Era) -> None:
    async def go() -> None:
        async with Client(server_for(FakeUseCases()), mode=era) as client:
            listed = {prompt.name: prompt for prompt in (await client.list_prompts()).prompts}
            assert set(listed) == set(PROMPTS) == set(ARGUMENTS)
            for prompt in listed.values():
                assert prompt.title and prompt.description and prompt.arguments
                assert all(argument.description for argument in prompt.arguments)

    anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_is_filled_with_what_was_given(name: str, era: Era) -> None:
    text = text_of(runs(), name, ARGUMENTS[name], era)
    for value in ARGUMENTS[name].values():
        assert value in text


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_name_tools_that_exist(name: str) -> None:
    verbs = "start|stop|resume|wait|get|list|compare|estimate|probe|check|inspect|read|diagnose|plot|export"
    named = set(re.findall(rf"\b(?:{verbs})_[a-z_]+\b", text_of(runs(), name, ARGUMENTS[name])))
    assert named and named <= set(VERBS)


def test_a_prompt_about_a_run_takes_the_current_one_and_tells_its_state() -> None:
    text = text_of(runs(), "review_run")
    assert "opd_1" in text and "completed at step 30 of 30" in text


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nobody", {}, "Unknown prompt"),
        ("review_run", {"run_id": "opd_9"}, "There is no run 'opd_9'"),
        ("compare_runs", {"run_a": "opd_1"}, "run_b"),
        ("compare_runs", {"run_a": "opd_1", "run_b": ""}, "needs run_b"),
        ("review_run", {"run": "opd_1"}, "no argument 'run'"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_the_callers_error(
    name: str, arguments: dict[str, str], message: str, era: Era
) -> None:
    with pytest.raises(MCPError, match=message) as error:
        text_of(runs(), name, arguments, era)
    assert error.value.code == INVALID_PARAMS


def test_a_crash_in_a_prompt_stays_the_servers_error() -> None:
    with pytest.raises(MCPError) as error:
        text_of(FakeUseCases(error=KeyError("secret")), "review_run")
    assert error.value.code == INTERNAL_ERROR and "secret" not in str(error.value)


def test_an_argument_is_data_escaped_and_capped() -> None:
    text = text_of(runs(), "after_fine_tune", {"adapter_path": "/a\x1b[31m" + "x" * 5_000})
    assert "\x1b" not in text and len(text) < 3_000


# --- completions


def complete(cases: FakeUseCases, ref: Any, name: str, value: str, era: Era = "auto") -> list[str]:
    async def go() -> list[str]:
        async with Client(server_for(cases), mode=era) as client:
            return (await client.complete(ref, {"name": name, "value": value})).completion.values

    return anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("ref", "name"),
    [
        (ResourceTemplateReference(uri=run_uri("{run_id}", "metrics")), "run_id"),
        (PromptReference(name="review_run"), "run_id"),
        (PromptReference(name="compare_runs"), "run_b"),
    ],
)
def test_run_ids_are_completed(ref: Any, name: str, era: Era) -> None:
    assert complete(runs(), ref, name, "opd_", era) == ["opd_1", "opd_2"]
    assert complete(runs(), ref, name, "opd_2", era) == ["opd_2"]
    assert complete(runs(), ref, name, "x", era) == []


def test_adapters_that_load_are_completed() -> None:
    adapters = (AdapterInfo(Path("/a/good"), "good"), AdapterInfo(Path("/a/bad"), "bad", problem="no weights"))
    cases = FakeUseCases(models=LocalModels((), adapters))
    assert complete(cases, PromptReference(name="after_fine_tune"), "adapter_path", "/a/") == ["/a/good"]


def test_what_cannot_be_completed_is_empty() -> None:
    assert complete(runs(), PromptReference(name="distill_my_adapter"), "teacher", "") == []
    broken = FakeUseCases(error=HomeError("OPD_HOME cannot be used."))
    assert complete(broken, PromptReference(name="review_run"), "run_id", "") == []
