"""A paid teacher through every part at once: client, server, worker, ledger, a scripted endpoint with its own bill."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from mcp import StdioServerParameters
from mcp.client import Client

from tests.endpoint import Endpoint, Reply
from tests.server.fakes import data_of, text_of
from tests.server.test_end_to_end import Story, ended, house, parameters, pytestmark
from tests.small_runs import configuration

__all__ = ["house", "pytestmark"]  # fixtures and marks of the free stories hold here as well
CANARY = "sk-ant-canary-0123456789abcdef"
WAIT = {"timeout_seconds": 30}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


def paid(home: Path, **changes: Any) -> dict[str, Any]:
    """A small run taught by text."""
    fields = {
        "teacher_kind": "claude",
        "teacher_system_prompt": None,
        "teacher_rate_limit_tpm": 100_000_000,
        "max_budget_usd": 1.0,
        "acknowledge_teacher_terms": True,
        "rollout_max_tokens": 64,
        "probe_max_prompts": 6,
        "learning_rate": 1e-2,
        **changes,
    }
    given = {**configuration(home), **fields}
    return {name: value for name, value in given.items() if value is not None}


def paid_server(home: Path, endpoint: Endpoint) -> StdioServerParameters:
    """The server's command; the endpoint's address stands in the file that only a person writes."""
    (home / "settings.toml").write_text(f'teacher_base_url = "{endpoint.url}"\n', encoding="utf-8")
    server = parameters(home)
    return StdioServerParameters(
        command=server.command, args=server.args, env={"OPD_HOME": str(home), "ANTHROPIC_API_KEY": CANARY}
    )


def tell_paid(home: Path, endpoint: Endpoint, story: Story) -> None:
    """Run a story with a client of a fresh server."""
    server = paid_server(home, endpoint)

    async def go() -> None:
        with anyio.fail_after(150):
            async with Client(server) as client:
                await story(client)

    anyio.run(go)


async def dropped(
    server: StdioServerParameters, tool: str, arguments: dict[str, Any], arrived: threading.Event
) -> None:
    """Call a tool and go away, server and all, while the call is still under way."""
    async with Client(server) as client, anyio.create_task_group() as calls:

        async def call() -> None:
            await client.call_tool(tool, arguments)
            raise AssertionError("the call was answered before it was dropped")

        calls.start_soon(call)
        assert await anyio.to_thread.run_sync(arrived.wait, 60), "the job asks its teacher"
        calls.cancel_scope.cancel()


async def fetched(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The result of a job's tool, however long it takes."""
    data = data_of(await client.call_tool(tool, {**arguments, **WAIT}))
    while data["status"] == "pending":
        data = data_of(await client.call_tool(tool, {"job_id": data["job_id"], **WAIT}))
    return data


def test_from_the_question_about_the_terms_to_a_judged_comparison(house: Path, endpoint: Endpoint) -> None:
    async def story(client: Client) -> None:
        refused = await client.call_tool("start_distillation", paid(house, acknowledge_teacher_terms=None))
        assert refused.is_error and "tell the user" in text_of(refused) and "terms" in text_of(refused)
        nameless = await client.call_tool("start_distillation", paid(house, max_budget_usd=None))
        assert nameless.is_error and "ask the user how many dollars" in text_of(nameless)
        assert endpoint.requests == []

        estimate = data_of(await client.call_tool("estimate_cost", paid(house, method="contrast")))
        assert 0 < estimate["paid"]["pays_usd"] < estimate["paid"]["pays_at_most_usd"]
        assert estimate["paid"]["chosen"]["method"] == "contrast" and endpoint.requests == []

        probe = await fetched(client, "probe_teacher", paid(house))
        assert probe["status"] == "completed", probe
        assert [level["level"] for level in probe["levels"]] == ["examples", "lesson", "critique", "reference"]
        assert probe["budget"]["spent_usd"] == pytest.approx(endpoint.billed_pico / 1e12)
        assert probe["measure"] == "judgement" and probe["method"] == "contrast", "three prompts show no difference"

        billed = endpoint.billed_pico
        started = data_of(await client.call_tool("start_distillation", paid(house, method="contrast")))
        status = await ended(client, started["run_id"])
        assert status["state"] == "completed", status
        assert status["budget"]["spent_usd"] == pytest.approx((endpoint.billed_pico - billed) / 1e12)
        assert f"of its budget of ${1:.2f}" in status["summary"]

        billed, calls = endpoint.billed_pico, len(endpoint.calls)
        again = data_of(await client.call_tool("start_distillation", paid(house, method="contrast")))
        status = await ended(client, again["run_id"])
        assert status["state"] == "completed" and status["budget"]["spent_usd"] == 0
        assert (endpoint.billed_pico, len(endpoint.calls)) == (billed, calls), "everything was paid for"

        question = {"run_id": again["run_id"], "max_samples": 6, "judge": True, "judge_budget_usd": 0.5}
        compared = await fetched(client, "compare_adapters", question)
        assert compared["status"] == "completed", compared
        assert compared["judge"]["note"] == "" and compared["teacher_task_score"] is None
        assert compared["judge"]["calls"] > 0 and compared["primary_metric"] == "judgement"
        judged = compared["rows"][1]["judged"]
        assert judged["pairs"] == compared["held_out_prompts"] and judged["verdict"] == "no difference shown", (
            "always 'a' turns with the order"
        )
        assert compared["judge"]["cost_usd"] == pytest.approx((endpoint.billed_pico - billed) / 1e12, rel=1e-3)

    tell_paid(house, endpoint, story)
    leaks = [path for path in house.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert leaks == []
    records = [json.loads(path.read_text().splitlines()[0]) for path in house.glob("teacher_completions/*.jsonl")]
    assert len(records) == 4, "probe, two runs, comparison"


def test_a_budget_that_ends_stops_the_run_and_a_larger_one_goes_on(house: Path, endpoint: Endpoint) -> None:
    async def story(client: Client) -> None:
        run = paid(house, method="sft", num_training_steps=6, max_budget_usd=0.035, eval_every_steps=1)
        started = data_of(await client.call_tool("start_distillation", run))
        status = await ended(client, started["run_id"])
        assert (status["state"], status["end_reason"]) == ("stopped", "budget"), status
        assert status["budget_exceeded"] and status["budget"]["spent_usd"] <= 0.035
        assert "used up" in status["summary"] and "confirmed=true" in status["next_step"]
        assert (Path(status["final_adapter_path"]) / "adapters.safetensors").is_file()

        more = {"run_id": started["run_id"], "max_budget_usd": 1.0}
        unconfirmed = await client.call_tool("resume_distillation", more)
        assert unconfirmed.is_error and "Ask the user" in text_of(unconfirmed)
        data_of(await client.call_tool("resume_distillation", {**more, "confirmed": True}))
        status = await ended(client, started["run_id"])
        assert status["state"] == "completed" and status["budget"]["limit_usd"] == 1.0, status
        assert status["budget"]["spent_usd"] == pytest.approx(endpoint.billed_pico / 1e12)

    tell_paid(house, endpoint, story)


# row 42
def test_a_client_that_drops_a_call_changes_nothing_and_its_repetition_starts_nothing(
    house: Path, endpoint: Endpoint
) -> None:
    hold, arrived = threading.Event(), threading.Event()
    endpoint.script.append(Reply(text=json.dumps({"reference": "Yes."}), hold=hold, arrived=arrived))
    server = paid_server(house, endpoint)
    question = paid(house, client_request_id="once", guidance_level="examples")

    async def go() -> None:
        try:
            with anyio.fail_after(90):
                await dropped(server, "probe_teacher", {**question, "timeout_seconds": 50}, arrived)
        finally:
            hold.set()
        with anyio.fail_after(90):
            async with Client(server) as client:
                probe = await fetched(client, "probe_teacher", question)
                assert probe["status"] == "completed", probe
                runs = data_of(await client.call_tool("list_runs", {}))["runs"]
                assert [run["run_id"] for run in runs] == [probe["job_id"]], "one job, whoever asks for it how often"
                assert probe["budget"]["spent_usd"] == pytest.approx(endpoint.billed_pico / 1e12)
                asked = [json.dumps(call, sort_keys=True) for call in endpoint.calls]
                assert len(asked) == len(set(asked)), "nothing was asked twice"

    anyio.run(go)
    with sqlite3.connect(house / "opd.db") as database:
        states = database.execute("SELECT state, COUNT(*) FROM calls GROUP BY state").fetchall()
        (epoch,) = database.execute("SELECT epoch FROM runs").fetchone()
    assert states == [("settled", len(endpoint.calls))] and epoch == 1, "the worker outlived server and client"
