"""Every text of the teacher is recorded, with what it cost and why it could not be used."""

from __future__ import annotations

import json

from tests.endpoint import Reply
from tests.opd_core.teachers.claude_kit import Kit, ask, reference


def test_every_text_is_recorded(kit: Kit) -> None:
    kit.endpoint.script.append(Reply(text=reference("Ja."), headers={"request-id": "req_7"}))
    teacher = kit.teacher()
    teacher.references([ask()])
    teacher.references([ask()])
    bought, cached = kit.texts
    assert json.loads(bought["text"]) == {"reference": "Ja."}
    assert (bought["cache_hit"], cached["cache_hit"]) == (False, True)
    assert bought["cost_pico"] == kit.endpoint.billed_pico
    assert (cached["cost_usd"], cached["latency_ms"]) == (0.0, 0.0)
    assert bought["request_id"] == "req_7"
    assert bought["input_tokens"] > 0 < bought["output_tokens"]
    assert bought["request_key"] == cached["request_key"]
    assert bought["kind"] == "reference"


def test_a_paid_reply_that_cannot_be_read_is_recorded_with_its_charge_and_the_reason(kit: Kit) -> None:
    garbage = "busy \x1b[31m\u202e" + "x" * 10_000
    kit.endpoint.script.append(Reply(raw=garbage.encode(), headers={"request-id": "req_9"}))
    teacher = kit.teacher()
    assert teacher.references([ask()]) == [None]
    [line] = kit.texts
    assert line["standing"] == "malformed" and "not JSON" in line["unusable"]
    assert line["cost_pico"] == kit.totals.spent_pico > 0
    assert (line["model"], line["request_id"], line["cache_hit"]) == ("claude-sonnet-5-5", "req_9", False)
    assert line["text"].startswith("busy \\x1b[31m\\u202ex") and len(line["text"]) < 4_100
    assert (line["input_tokens"], line["output_tokens"], line["stop_reason"]) == (None, None, None)
    assert line["request_key"] and line["kind"] == "reference"


def test_a_paid_reply_without_a_price_is_recorded_with_what_it_said(kit: Kit) -> None:
    kit.endpoint.script.append(Reply(text=reference("Ja."), usage={"service_tier": "priority"}))
    assert kit.teacher().references([ask()]) == [None]
    [line] = kit.texts
    assert (line["standing"], json.loads(line["text"])) == ("malformed", {"reference": "Ja."})
    assert "priority" in line["unusable"] and line["cost_pico"] == kit.totals.spent_pico
    assert line["output_tokens"] > 0
