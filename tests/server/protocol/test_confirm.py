"""The user's yes to a costly start: asked where the client can ask, a refusal that says what to do where it cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.client.context import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ElicitRequestFormParams, ElicitRequestParams, ElicitResult
from starlette.testclient import TestClient

from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig
from opd_core.errors import ConfirmationNeededError
from opd_core.paths import HomePaths
from opd_core.state.rows import RunRow
from server.app import server_for
from server.arguments.jobs import CompareArguments
from server.home_use_cases import HomeUseCases
from server.settings import Settings
from server.web.app import http_app
from tests.server.asgi import TOKEN
from tests.server.fakes import ERAS, Era, FakeUseCases, data_of, text_of
from tests.server.records import COMPARED, CONFIG, PROBED, completed, make_row

QUESTION = "Start this run? It may spend up to $20.00."


@dataclass
class Costly(FakeUseCases):
    """Refuses whatever is not confirmed; `questions` are given out one a refusal, the last one stays."""

    rows: list[RunRow] = field(default_factory=lambda: [make_row(state="queued", queue_position=1)])
    questions: list[str] = field(default_factory=lambda: [QUESTION])
    started: list[bool] = field(default_factory=list)

    def _require(self, confirmed: bool) -> None:
        if not confirmed:
            raise ConfirmationNeededError(self.questions.pop(0) if len(self.questions) > 1 else self.questions[0])
        self.started.append(confirmed)

    def start(self, config: RunConfig) -> RunRow:
        self._require(config.confirmed)
        return super().start(config)

    def start_probe(self, config: RunConfig) -> RunRow:
        self._require(config.confirmed)
        return super().start_probe(config)

    def start_comparison(self, arguments: CompareArguments) -> RunRow:
        self._require(arguments.confirmed)
        return super().start_comparison(arguments)

    def resume(
        self,
        run_id: str | None,
        num_training_steps: int | None,
        max_budget_usd: float | None,
        confirmed: bool,
        from_step: int | None,
        accept_changes: bool,
    ) -> RunRow:
        self._require(confirmed)
        return super().resume(run_id, num_training_steps, max_budget_usd, confirmed, from_step, accept_changes)


class User:
    """Answers every form with one result; keeps what was shown."""

    def __init__(self, answer: ElicitResult) -> None:
        self.answer = answer
        self.shown: list[ElicitRequestParams] = []

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        self.shown.append(params)
        return self.answer


YES = ElicitResult(action="accept", content={"agreed": True})


def ask(cases: FakeUseCases, user: User | None, era: Era, tool: str, arguments: dict[str, Any]) -> CallToolResult:
    async def go() -> CallToolResult:
        async with Client(server_for(cases), mode=era, elicitation_callback=user) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(go)


@pytest.mark.parametrize("era", ERAS)
def test_a_client_that_can_ask_shows_the_question_and_the_yes_starts_the_run(era: Era) -> None:
    cases, user = Costly(), User(YES)
    assert data_of(ask(cases, user, era, "start_distillation", CONFIG))["run_id"] == "opd_1"
    (form,) = user.shown
    assert isinstance(form, ElicitRequestFormParams) and form.message == QUESTION
    assert list(form.requested_schema["properties"]) == form.requested_schema["required"] == ["agreed"]
    assert cases.started == [True]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    "answer",
    [
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
        ElicitResult(action="accept", content={"agreed": False}),
        ElicitResult(action="accept", content={}),
        ElicitResult(action="accept", content={"agreed": "perhaps"}),
    ],
    ids=["declined", "cancelled", "not ticked", "empty", "nonsense"],
)
def test_anything_but_a_clear_yes_starts_nothing_and_is_said_plainly(answer: ElicitResult, era: Era) -> None:
    cases = Costly()
    result = ask(cases, User(answer), era, "start_distillation", CONFIG)
    assert result.is_error and "did not agree" in text_of(result) and "nothing was started" in text_of(result)
    assert cases.started == []


@pytest.mark.parametrize("era", ERAS)
def test_a_client_that_cannot_ask_is_told_to_ask_and_to_call_again_with_confirmed(era: Era) -> None:
    cases = Costly()
    result = ask(cases, None, era, "start_distillation", CONFIG)
    assert result.is_error and QUESTION in text_of(result) and "confirmed true" in text_of(result)
    assert cases.started == []
    assert not ask(cases, None, era, "start_distillation", {**CONFIG, "confirmed": True}).is_error


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("tool", "arguments", "cases"),
    [
        ("probe_teacher", CONFIG, Costly(rows=[completed(kind="probe", run_id="prb_1")], probe=PROBED)),
        (
            "compare_adapters",
            {"judge": True, "judge_budget_usd": 9.0},
            Costly(rows=[completed(kind="comparison", run_id="cmp_1")], result=COMPARED),
        ),
        ("resume_distillation", {"max_budget_usd": 30.0}, Costly()),
    ],
)
def test_every_call_that_may_spend_is_asked_about(
    tool: str, arguments: dict[str, Any], cases: Costly, era: Era
) -> None:
    user = User(YES)
    data_of(ask(cases, user, era, tool, arguments))
    assert len(user.shown) == 1 and cases.started[-1]


def test_a_yes_to_another_question_is_none_to_this_one() -> None:
    cases, user = Costly(questions=["It costs $2.", "It costs $20."]), User(YES)
    data_of(ask(cases, user, "auto", "start_distillation", CONFIG))
    assert [form.message for form in user.shown] == ["It costs $2.", "It costs $20."]


def test_what_needs_no_yes_asks_nobody() -> None:
    user = User(YES)
    cases = FakeUseCases(rows=[make_row(state="queued", queue_position=1)])
    data_of(ask(cases, user, "auto", "start_distillation", CONFIG))
    assert user.shown == []


def test_a_client_whose_form_fails_gets_the_refusal() -> None:
    async def broken(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        raise RuntimeError("no window")

    async def go() -> CallToolResult:
        async with Client(server_for(Costly()), mode="legacy", elicitation_callback=broken) as client:
            return await client.call_tool("start_distillation", CONFIG)

    assert "confirmed true" in text_of(anyio.run(go))


def test_a_client_that_cannot_be_reached_in_the_middle_of_a_call_gets_the_refusal() -> None:
    user, server = User(YES), server_for(Costly())
    app = server.streamable_http_app(stateless_http=True, json_response=True)

    async def go() -> CallToolResult:
        web = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
        transport = streamable_http_client("http://127.0.0.1:8000/mcp", http_client=web)
        async with (
            server.session_manager.run(),
            Client(transport, mode="legacy", elicitation_callback=user) as client,
        ):
            return await client.call_tool("start_distillation", CONFIG)

    assert "confirmed true" in text_of(anyio.run(go)) and user.shown == []


@pytest.mark.parametrize("confirmed", [True, False])
def test_what_a_comparison_says_of_the_users_yes_reaches_the_rule(confirmed: bool, home: HomePaths) -> None:
    said: list[bool] = []

    class Told:
        def status(self, run_id: str | None) -> RunRow:
            return completed()

        def start_comparison(self, spec: ComparisonSpec, confirmed: bool) -> RunRow:
            said.append(confirmed)
            return completed(kind="comparison")

    cases = HomeUseCases(Settings(home))
    cases.__dict__["_runs"] = Told()
    given = {"run_id": "opd_1", "candidates": [{"name": "base"}], "confirmed": confirmed}
    cases.start_comparison(CompareArguments.model_validate(given))
    assert said == [confirmed]


def test_a_route_refuses_with_the_question_until_the_body_says_confirmed() -> None:
    cases = Costly()
    app = http_app(cases, token=TOKEN, hosts=frozenset({"testserver"}), origins=frozenset())
    with TestClient(app, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        refused = client.post("/opd/start", json=CONFIG)
        assert refused.status_code == 422 and refused.json()["field"] == "confirmed"
        assert QUESTION in refused.json()["detail"] and cases.started == []
        assert client.post("/opd/start", json={**CONFIG, "confirmed": True}).is_success
    assert cases.started == [True]
