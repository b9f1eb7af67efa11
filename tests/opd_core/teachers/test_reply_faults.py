"""What the money does with replies that are not whole, say no price, or cost more than was reserved."""

from __future__ import annotations

import json
from typing import Any

import pytest

from opd_core.errors import BudgetFrozenError
from opd_core.guidance import Reference
from tests.endpoint import Reply
from tests.opd_core.teachers.claude_kit import Kit, ask, reference


# row 12
@pytest.mark.parametrize(
    "reply",
    [
        Reply(text=reference(), message={"usage": ...}),
        Reply(text=reference(), message={"usage": None}),
        Reply(text=reference(), usage={"output_tokens": "NaN"}),
        Reply(text=reference(), usage={"input_tokens": -3}),
        Reply(text=reference(), usage={"output_tokens": ...}),
        Reply(text=reference(), usage={"output_tokens": 1.5}),
        Reply(text=reference(), usage={"input_tokens": True}),
    ],
)
def test_a_reply_without_valid_usage_is_charged_in_full_and_never_used(kit: Kit, reply: Reply) -> None:
    kit.endpoint.script.append(reply)
    teacher = kit.teacher()
    assert teacher.references([ask()]) == [None]
    assert teacher.stats().malformed == 1
    assert kit.totals.forfeited_calls == len(kit.endpoint.calls) == 1
    kit.check_money()


# row 13
@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b"<html>busy</html>",
        b"",
        b'{"type": "message", "role": "user"}',
        b'{"type": "message", "type": "message"}',
        b"[" * 100_000,
    ],
)
def test_a_status_200_that_is_no_message_is_charged_in_full(kit: Kit, raw: bytes) -> None:
    kit.endpoint.script.append(Reply(raw=raw))
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1
    kit.check_money()


# row 13
def test_a_web_page_instead_of_a_message_is_charged_in_full(kit: Kit) -> None:
    kit.endpoint.script.append(Reply(raw=b"<html>", headers={"content-type": "text/html"}))
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1


# row 14
@pytest.mark.parametrize(
    ("message", "counted"),
    [
        ({"stop_reason": "max_tokens"}, "truncated"),
        ({"stop_reason": "model_context_window_exceeded"}, "truncated"),
        ({"stop_reason": "refusal", "stop_details": {"category": "bio"}}, "refused"),
        ({"stop_reason": "refusal", "stop_details": None}, "refused"),
        ({"stop_reason": "pause_turn"}, "malformed"),
        ({"stop_reason": "something_new"}, "malformed"),
        ({"content": []}, "malformed"),
        ({"content": [{"type": "text", "text": '{"reference": ""}'}]}, "malformed"),
        ({"content": [{"type": "text", "text": '{"answer": "x"}'}]}, "malformed"),
    ],
)
def test_a_reply_that_is_not_whole_is_paid_by_usage_counted_and_never_used(
    kit: Kit, message: dict[str, Any], counted: str
) -> None:
    kit.endpoint.script.append(Reply(text=reference(), message=message))
    teacher = kit.teacher()
    assert teacher.references([ask()]) == [None]
    assert getattr(teacher.stats(), counted) == 1
    assert kit.totals.spent_pico == kit.endpoint.billed_pico > 0
    assert [line["standing"] for line in kit.texts] == [counted]


# row 15
@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=json.dumps({"type": "error", "error": {"type": "api_error", "message": "x"}}).encode()),
        Reply(text=reference(), message={"stop_reason": None}),
        Reply(text=reference(), message={"stop_reason": ...}),
    ],
)
def test_an_error_or_an_unfinished_message_after_status_200_is_never_accepted(kit: Kit, reply: Reply) -> None:
    kit.endpoint.script.append(reply)
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1
    kit.check_money()


# row 16
def test_a_reply_that_cost_more_than_was_reserved_is_recorded_and_freezes_the_budget(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    kit.endpoint.script.append(Reply(text=reference(), usage={"output_tokens": 5_000}))
    assert kit.teacher().references([ask()]) == [Reference("Yes.")]
    assert kit.totals.frozen
    assert kit.totals.spent_pico == kit.endpoint.billed_pico
    assert "frozen" in caplog.text
    with pytest.raises(BudgetFrozenError):
        kit.teacher().references([ask("another")])
    assert len(kit.endpoint.calls) == 1


# row 17
def test_a_reply_of_another_model_is_priced_by_the_dearer_of_the_two(kit: Kit) -> None:
    kit.endpoint.script.extend(
        [
            Reply(text=reference(), message={"model": "claude-opus-5-5"}),
            Reply(text=reference(), message={"model": "claude-haiku-5-5"}),
        ]
    )
    kit.teacher(max_concurrent=1).references([ask("a")])
    assert kit.totals.spent_pico == kit.endpoint.billed_pico
    kit.teacher(max_concurrent=1).references([ask("b")])
    assert kit.totals.spent_pico > kit.endpoint.billed_pico


# row 17
@pytest.mark.parametrize(
    "reply",
    [
        Reply(text=reference(), message={"model": "claude-unheard-of"}),
        Reply(text=reference(), usage={"service_tier": "priority"}),
        Reply(text=reference(), usage={"inference_geo": "moon"}),
        Reply(text=reference(), usage={"speed": "ludicrous"}),
        Reply(text=reference(), usage={"server_tool_use": {"web_search_requests": 1}}),
    ],
)
def test_a_reply_that_has_no_price_is_charged_in_full_and_freezes_the_budget(kit: Kit, reply: Reply) -> None:
    kit.endpoint.script.append(reply)
    assert kit.teacher().references([ask()]) == [None]
    assert kit.totals.forfeited_calls == 1
    assert kit.totals.frozen
    with pytest.raises(BudgetFrozenError):
        kit.teacher().references([ask("another")])
