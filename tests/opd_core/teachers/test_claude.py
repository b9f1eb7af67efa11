"""The paid teacher as training asks it: what is asked, what comes back, what is counted."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from opd_core.config import parse_config
from opd_core.errors import TeacherRefusedError, TeacherUnavailableError
from opd_core.guidance import Guidance, Judgement, JudgePair, Reference, Templates
from opd_core.teachers.claude import ClaudeSettings
from tests.endpoint import Reply, error, request_data
from tests.opd_core.teachers.claude_kit import RUN, Kit, ask, reference, rollout


def test_references_come_in_the_order_of_the_conversations(kit: Kit) -> None:
    kit.endpoint.answer = lambda params: {"reference": request_data(params)["conversation"][0]["content"][::-1]}
    found = kit.teacher().references([ask(f"prompt {number}") for number in range(12)])
    assert found == [Reference(f"prompt {number}"[::-1]) for number in range(12)]
    assert len(kit.endpoint.calls) == 12
    kit.check_money()


def test_guidance_is_parsed(kit: Kit) -> None:
    expected = Guidance(
        "repairable", 0.4, "The first word is wrong; it should be Yes.", "Yes.", "Answer with one word."
    )
    assert kit.teacher().guidance([rollout()]) == [expected]


def test_one_lesson_costs_one_call(kit: Kit) -> None:
    assert kit.teacher().lesson([rollout(completion=text) for text in "abc"]) == "Answer with one word."
    assert [len(request_data(call)["attempts"]) for call in kit.endpoint.calls] == [3]


def test_a_judge_that_prefers_a_place_rather_than_an_answer_gives_a_tie(kit: Kit) -> None:
    pair = JudgePair(tuple(ask()), "Yes.", "No.")
    assert kit.teacher().judge([pair]) == [Judgement("tie", consistent=False)]  # always "a"
    answers = sorted((request_data(call)["answer_a"], request_data(call)["answer_b"]) for call in kit.endpoint.calls)
    assert answers == [("No.", "Yes."), ("Yes.", "No.")]


def test_a_judge_that_prefers_an_answer_in_both_orders_is_believed(kit: Kit) -> None:
    def longer(params: dict[str, Any]) -> dict[str, Any]:
        data = request_data(params)
        return {"reason": "", "preferred": "a" if len(data["answer_a"]) > len(data["answer_b"]) else "b"}

    kit.endpoint.answer = longer
    assert kit.teacher().judge([JudgePair(tuple(ask()), "short", "much longer")]) == [Judgement("second", True)]


def test_the_request_says_everything_that_decides_the_price(kit: Kit) -> None:
    kit.teacher().references([ask()])
    [call] = kit.endpoint.calls
    assert call["service_tier"] == "standard_only"
    assert call["inference_geo"] == "global"
    assert call["output_config"]["format"]["type"] == "json_schema"
    assert not call.keys() & {"temperature", "top_p", "top_k", "speed", "tools", "stream", "thinking"}
    [(_, _, headers, _)] = kit.endpoint.requests
    assert headers["anthropic-version"] == "2026-10-21"


def test_the_shared_instructions_come_first_and_may_be_cached(kit: Kit) -> None:
    kit.teacher().references([ask("a"), ask("b")])
    first, second = kit.endpoint.calls
    assert first["system"] == second["system"]
    assert first["system"][-1]["cache_control"] == {"type": "ephemeral"}
    assert first["messages"] != second["messages"]


def test_no_requests_need_no_key_and_no_call(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert kit.teacher().references([]) == []


def test_no_more_calls_are_under_way_than_allowed(kit: Kit) -> None:
    lock, most, now = threading.Lock(), 0, 0
    gate = threading.Barrier(3)

    def answer(params: dict[str, Any]) -> str:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        gate.wait(10)  # passes only when three are here at once
        with lock:
            now -= 1
        return reference()

    kit.endpoint.answer = answer
    kit.teacher(max_concurrent=3).references([ask(str(number)) for number in range(9)])
    assert most == 3


def test_stats_count_calls_hits_and_cost(kit: Kit) -> None:
    kit.endpoint.script.extend([reference(), Reply(text="x", message={"stop_reason": "max_tokens"})])
    teacher = kit.teacher(max_concurrent=1)
    teacher.references([ask("a"), ask("b")])
    teacher.references([ask("a")])
    stats = teacher.stats()
    assert (stats.calls, stats.cache_hits, stats.truncated) == (2, 1, 1)
    assert stats.cost_usd == pytest.approx(kit.endpoint.billed_pico / 1e12)


def test_a_refusal_of_the_undertaking_stops_the_run_and_says_why(kit: Kit) -> None:
    kit.endpoint.script.append(
        Reply(text="", message={"stop_reason": "refusal", "stop_details": {"category": "frontier_llm"}})
    )
    with pytest.raises(TeacherRefusedError, match="competing AI model"):
        kit.teacher(max_concurrent=1).references([ask(str(number)) for number in range(5)])
    assert len(kit.endpoint.calls) == 1
    assert kit.totals.spent_pico == kit.endpoint.billed_pico
    assert kit.texts[0]["refusal"] == "frontier_llm"


def test_the_rate_counts_what_calls_used_and_not_what_they_might_have(kit: Kit) -> None:
    teacher = kit.teacher(tokens_per_minute=3_000, max_tokens=2_000)
    for text in "abc":
        teacher.references([ask(text)])
    assert kit.time.slept == 0.0


def test_check_asks_for_nothing_that_costs(kit: Kit) -> None:
    kit.teacher().check()
    assert [path for _, path, _, _ in kit.endpoint.requests] == ["/v1/models/claude-sonnet-5-5"]
    kit.endpoint.model_script.append(error(401, "authentication_error", "invalid bearer token"))
    with pytest.raises(TeacherUnavailableError, match="key is not accepted") as caught:
        kit.teacher().check()
    assert caught.value.wake_in_seconds is None
    with pytest.raises(TeacherUnavailableError, match="retired") as caught:
        kit.teacher(model="claude-haiku-4-5").check()
    assert caught.value.wake_in_seconds is None
    assert kit.totals.calls == 0


@pytest.mark.parametrize(
    "reply",
    [
        *(error(status) for status in (408, 429, 500, 503, 529)),
        error(429, code="enforced_spend_limit_reached"),
        Reply(drop=True),
        Reply(status=307, raw=b"{}", headers={"location": "https://example.org"}),
    ],
    ids=lambda reply: str(reply.status if not reply.drop else "dropped"),
)
def test_a_look_that_fails_in_passing_is_no_finding_and_is_not_repeated(kit: Kit, reply: Reply) -> None:
    kit.endpoint.model_script.append(reply)
    with pytest.raises(TeacherUnavailableError) as caught:
        kit.teacher().check()
    assert caught.value.wake_in_seconds is not None and "charged" not in str(caught.value)
    assert len(kit.endpoint.requests) == 1 and kit.time.slept == 0.0


def test_settings_come_from_the_configuration() -> None:
    config = parse_config(
        {
            "base_model_path": "m",
            "prompts_path": "p.jsonl",
            "teacher_kind": "claude",
            "teacher_system_prompt": "Answer in one word.",
            "teacher_timeout_seconds": 30.0,
            "teacher_cache_only": True,
            "rollout_max_tokens": 100,
        }
    )
    settings = ClaudeSettings.from_config(config, run_id=RUN, owner="me")
    assert settings.model == "claude-sonnet-5-5"
    assert settings.base_url == "https://api.anthropic.com"
    assert settings.templates == Templates(rule="Answer in one word.")
    assert (settings.timeout_seconds, settings.cache_only, settings.max_tokens) == (30.0, True, 1736)
