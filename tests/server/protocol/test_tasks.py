"""Tasks: long calls of a client that declares the extension become tasks whose id is the run's; others see nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx2
import jsonschema
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import HEADER_MISMATCH, INVALID_PARAMS, METHOD_NOT_FOUND, MISSING_REQUIRED_CLIENT_CAPABILITY

from opd_core.errors import RunNotFoundError
from opd_core.state.rows import RunRow
from server.app import server_for
from server.protocol.run_tasks import TOOL_OF
from server.protocol.tasks import EXTENSION_ID
from tests.server.fakes import ERAS, Era, FakeUseCases
from tests.server.protocol.task_client import AnyParams, Anything, TaskClient, TaskRequest, ask, call
from tests.server.protocol.task_fixtures import FixtureTasks, fixture_tools
from tests.server.protocol.test_confirm import YES, Costly, User
from tests.server.records import COMPARED, CONFIG, PROBED, completed, make_row

Talk = Callable[[Client], Awaitable[None]]


class KnownRuns(FakeUseCases):
    """Knows the runs in `rows` alone, by any beginning of their ids, as the real ones do."""

    def status(self, run_id: str | None) -> RunRow:
        self._note("status", run_id)
        for row in self.rows:
            if run_id is None or row.run_id.startswith(run_id):
                return row
        raise RunNotFoundError(f"There is no run {run_id!r}.")


def talk(cases: FakeUseCases, conversation: Talk, **options: Any) -> None:
    async def go() -> None:
        server = server_for(cases, other_tools=fixture_tools(), other_tasks=[FixtureTasks()])
        with anyio.fail_after(30):
            async with Client(server, **{"extensions": [TaskClient()], **options}) as client:
                await conversation(client)

    anyio.run(go)


def job(kind: str, **changes: Any) -> RunRow:
    return make_row(**{"kind": kind, "run_id": f"{kind}_1", **changes})


@pytest.mark.parametrize(
    ("tool", "arguments", "kind"),
    [("wait_for_run", {}, "distillation"), ("compare_adapters", {}, "comparison"), ("probe_teacher", CONFIG, "probe")],
)
def test_a_long_call_becomes_a_task_of_the_run_and_ends_with_its_answer(
    tool: str, arguments: dict[str, Any], kind: str
) -> None:
    cases = KnownRuns(rows=[job(kind)], result=COMPARED, probe=PROBED)

    async def conversation(client: Client) -> None:
        made = await call(client, tool, arguments)
        assert (made["resultType"], made["taskId"], made["status"]) == ("task", f"{kind}_1", "working")
        assert made["pollIntervalMs"] > 0 and "result" not in made and "requestState" not in made
        task = await ask(client, "get", f"{kind}_1")
        assert task["status"] == "working" and task["ttlMs"] is None and "is running" in task["statusMessage"]
        cases.rows = [completed(kind=kind, run_id=f"{kind}_1")]
        task = await ask(client, "get", f"{kind}_1")
        assert (task["resultType"], task["status"]) == ("complete", "completed")
        structured = task["result"]["structuredContent"]
        assert structured["summary"] in task["result"]["content"][0]["text"] and not task["result"].get("isError")
        schema = next(tool_.output_schema for tool_ in (await client.list_tools()).tools if tool_.name == tool)
        jsonschema.validate(structured, schema or {})

    talk(cases, conversation)


def test_every_kind_of_job_has_the_tool_that_answers_for_it() -> None:
    assert set(TOOL_OF) == {"distillation", "comparison", "probe"}


@pytest.mark.parametrize(
    ("changes", "status", "is_error"),
    [
        ({"state": "queued"}, "working", None),
        ({"state": "waiting"}, "working", None),
        ({"state": "stopping"}, "working", None),
        ({"state": "stopped", "end_reason": "by_user"}, "cancelled", None),
        ({"state": "stopped", "end_reason": "budget"}, "completed", False),
        ({"state": "failed", "error_message": "the loss is not finite"}, "completed", True),
        ({"state": "interrupted"}, "completed", True),
    ],
)
def test_a_runs_state_is_a_tasks_status(changes: dict[str, Any], status: str, is_error: bool | None) -> None:
    async def conversation(client: Client) -> None:
        task = await ask(client, "get", "opd_1")
        assert task["status"] == status and "error" not in task
        assert task.get("result", {}).get("isError") is is_error
        if is_error:
            assert "Next: " in task["result"]["content"][0]["text"]

    talk(KnownRuns(rows=[make_row(**changes)]), conversation)


def test_what_is_done_already_or_refused_is_answered_at_once() -> None:
    async def conversation(client: Client) -> None:
        assert (await call(client, "wait_for_run", {}))["structuredContent"]["state"] == "completed"
        refused = await call(client, "wait_for_run", {"run_id": "nobody"})
        assert refused["isError"] and "There is no run 'nobody'" in refused["content"][0]["text"]
        assert (await call(client, "get_status", {}))["resultType"] == "complete"

    talk(KnownRuns(rows=[completed()]), conversation)


def test_waiting_for_a_job_of_another_kind_stays_a_bounded_wait() -> None:
    class Ending(KnownRuns):
        def status(self, run_id: str | None) -> RunRow:
            row = super().status(run_id)
            return row if len(self.asked) < 4 else completed(kind=row.kind, run_id=row.run_id)

    async def conversation(client: Client) -> None:
        waited = await call(client, "wait_for_run", {"run_id": "comparison_1"})
        assert waited["resultType"] == "complete" and waited["structuredContent"]["state"] == "completed"

    talk(Ending(rows=[job("comparison")]), conversation)


@pytest.mark.parametrize(
    ("tool", "arguments", "kind"),
    [("wait_for_run", {}, "distillation"), ("compare_adapters", {}, "comparison"), ("probe_teacher", CONFIG, "probe")],
)
def test_a_wait_of_a_length_that_was_asked_for_is_no_task(tool: str, arguments: dict[str, Any], kind: str) -> None:
    async def conversation(client: Client) -> None:
        waited = await call(client, tool, {**arguments, "timeout_seconds": 0})
        assert waited["resultType"] == "complete" and not waited.get("isError")
        assert f"{kind}_1" in waited["structuredContent"]["summary"]

    talk(KnownRuns(rows=[job(kind)]), conversation)


def test_cancelling_a_task_stops_its_run_and_is_acknowledged_emptily() -> None:
    cases = KnownRuns(rows=[make_row()])

    async def conversation(client: Client) -> None:
        assert await ask(client, "cancel", "opd_1") == {"resultType": "complete"}
        assert await ask(client, "update", "opd_1", inputResponses={"x": {}}) == {"resultType": "complete"}

    talk(cases, conversation)
    assert [asked for asked in cases.asked if asked[0] == "stop"] == [("stop", "opd_1", 0.0)]


@pytest.mark.parametrize("task_id", ["opd", "latest", "", "../x", "opd_2", "x" * 500])
@pytest.mark.parametrize("method", ["get", "cancel", "update"])
def test_only_the_exact_id_of_a_run_is_a_task(method: str, task_id: str) -> None:
    async def conversation(client: Client) -> None:
        with pytest.raises(MCPError) as error:
            await ask(client, method, task_id, inputResponses={})
        assert error.value.code == INVALID_PARAMS and len(str(error.value)) < 400

    cases = KnownRuns(rows=[make_row()])
    talk(cases, conversation)
    assert not [asked for asked in cases.asked if asked[0] == "stop"]


@pytest.mark.parametrize("era", ERAS)
def test_a_client_that_does_not_declare_tasks_never_gets_one(era: Era) -> None:
    async def conversation(client: Client) -> None:
        waited = await call(client, "wait_for_run", {"timeout_seconds": 0})
        assert waited["structuredContent"]["timed_out"] is True
        with pytest.raises(MCPError) as error:
            await ask(client, "get", "opd_1")
        code = METHOD_NOT_FOUND if era == "legacy" else MISSING_REQUIRED_CLIENT_CAPABILITY
        assert error.value.code == code

    talk(KnownRuns(rows=[make_row()]), conversation, mode=era, extensions=None)


def test_the_extension_is_advertised() -> None:
    async def conversation(client: Client) -> None:
        assert client.server_capabilities is not None
        assert EXTENSION_ID in (client.server_capabilities.extensions or {})

    talk(FakeUseCases(), conversation)


def test_a_costly_call_asks_before_it_becomes_a_task() -> None:
    cases, user = Costly(rows=[job("comparison")]), User(YES)
    judged = {"judge": True, "judge_budget_usd": 9.0}

    async def conversation(client: Client) -> None:
        question = await call(client, "compare_adapters", judged)
        assert question["resultType"] == "input_required" and not cases.started
        result = await client.session.call_tool(
            "compare_adapters",
            judged,
            allow_claimed=True,
            allow_input_required=True,
            request_state=question["requestState"],
            input_responses={next(iter(question["inputRequests"])): YES},
        )
        assert result.model_dump(by_alias=True)["taskId"] == "comparison_1" and cases.started == [True]

    talk(cases, conversation, elicitation_callback=user)


def test_another_source_of_tasks_goes_through_the_same_seam() -> None:
    async def conversation(client: Client) -> None:
        asks_two = await call(client, "multi_input", {})
        task = await ask(client, "get", asks_two["taskId"])
        assert task["status"] == "input_required" and set(task["inputRequests"]) == {"first", "second"}
        await ask(client, "update", asks_two["taskId"], inputResponses={"first": {"action": "accept"}})
        assert set((await ask(client, "get", asks_two["taskId"]))["inputRequests"]) == {"second"}
        await ask(client, "cancel", asks_two["taskId"])
        assert (await ask(client, "get", asks_two["taskId"]))["status"] == "cancelled"
        assert (await call(client, "greet", {}))["content"][0]["text"] == "Hello, World!"

    talk(KnownRuns(rows=[make_row()]), conversation)


def test_a_tool_that_is_only_a_task_refuses_a_client_without_tasks() -> None:
    async def conversation(client: Client) -> None:
        with pytest.raises(MCPError) as error:
            await call(client, "failing_job", {})
        assert error.value.code == MISSING_REQUIRED_CLIENT_CAPABILITY

    talk(FakeUseCases(), conversation, extensions=None)


@pytest.mark.parametrize(("name_param", "is_refused"), [("taskId", False), ("other", True), (None, True)])
def test_over_http_the_header_that_names_the_task_must_say_what_the_body_says(
    name_param: str | None, is_refused: bool
) -> None:
    class Named(TaskRequest):
        pass

    Named.name_param = name_param
    params = AnyParams.model_validate({"taskId": "opd_1", "other": "opd_2"})
    server = server_for(KnownRuns(rows=[make_row()]))
    app = server.streamable_http_app(host="127.0.0.1")

    async def go() -> None:
        web = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
        transport = streamable_http_client("http://127.0.0.1:8000/mcp", http_client=web)
        async with server.session_manager.run(), Client(transport, extensions=[TaskClient()]) as client:
            try:
                await client.session.send_request(Named(method="tasks/get", params=params), Anything)
                assert not is_refused
            except MCPError as error:
                assert is_refused and error.code == HEADER_MISMATCH

    anyio.run(go)
