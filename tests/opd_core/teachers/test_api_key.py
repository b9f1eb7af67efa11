"""The API key: named when it is missing, and kept out of every file, log, exception and reply."""

from __future__ import annotations

import json
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import TeacherUnavailableError
from opd_core.guidance import Reference
from opd_core.money.response_cache import ResponseCache
from tests.endpoint import Reply, error
from tests.opd_core.teachers.claude_kit import KEY, Kit, ask, reference


def test_a_missing_key_is_named_before_money_is_held(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", " ")
    with pytest.raises(TeacherUnavailableError, match="ANTHROPIC_API_KEY is not set") as caught:
        kit.teacher().references([ask()])
    assert caught.value.wake_in_seconds is None
    assert kit.totals.calls == 0


def test_a_key_that_is_none_is_not_shown(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(TeacherUnavailableError) as caught:
        kit.teacher().references([ask()])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("use_batches", [False, True], ids=["call", "batch"])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(text=reference(f"The key is {KEY}.")),
        Reply(text=reference("Yes."), message={"model": KEY}),
        Reply(text=reference("Yes."), message={"stop_details": {KEY: KEY}}),
        Reply(text=reference("Yes."), usage={"service_tier": KEY}),
        Reply(text=reference("Yes."), usage={"output_tokens": KEY}),
        Reply(text=reference("Yes."), headers={"request-id": KEY}),
        Reply(raw=f"<html>{KEY}</html>".encode()),
        Reply(raw=json.dumps({"type": "error", "message": KEY}).encode()),
        Reply(text=reference("Another one is sk-ant-api03-AbCdEfGhIjKlMnOpQrSt-_0.")),
    ],
    ids=["text", "model", "name", "tier", "tokens", "header", "page", "error", "another"],
)
def test_a_reply_that_shows_a_key_is_kept_without_it(
    kit: Kit, caplog: pytest.LogCaptureFixture, reply: Reply, use_batches: bool
) -> None:
    caplog.set_level(logging.DEBUG, logger="opd_core")
    kit.endpoint.script.append(reply)
    kit.teacher(use_batches=use_batches).references([ask()], may_wait=True)
    assert len(kit.texts) == 1
    kept = [path for path in kit.database.parent.rglob("*") if path.is_file()]
    for secret in (KEY, "AbCdEfGhIjKlMnOpQrSt"):
        assert [path for path in kept if secret.encode() in path.read_bytes()] == []
        assert secret not in caplog.text


def test_a_key_spelled_with_escapes_is_found_and_the_value_is_without_it(kit: Kit) -> None:
    spelled = "".join(f"\\u{ord(character):04x}" for character in KEY)
    plain = kit.endpoint.message({"model": "claude-sonnet-5-5", "messages": []}, Reply(text=reference("It is HERE.")))
    kit.endpoint.script.append(Reply(raw=json.dumps(plain).replace("HERE", spelled).encode()))
    [found] = kit.teacher().references([ask()])
    assert found == Reference("It is [ANTHROPIC_API_KEY].")
    assert kit.teacher().references([ask()]) == [found] and len(kit.endpoint.calls) == 1
    body = ResponseCache(kit.database).get(kit.texts[0]["request_key"])
    assert body is not None and KEY not in json.dumps(json.loads(body)) and spelled not in body


def test_a_body_without_a_key_is_kept_to_the_byte(kit: Kit) -> None:
    plain = kit.endpoint.message({"model": "claude-sonnet-5-5", "messages": []}, Reply(text=reference("Ja ü.")))
    raw = json.dumps(plain, indent=3, ensure_ascii=False)
    kit.endpoint.script.append(Reply(raw=raw.encode()))
    kit.teacher().references([ask()])
    assert ResponseCache(kit.database).get(kit.texts[0]["request_key"]) == raw


def test_a_key_that_goes_away_after_the_reservation_costs_nothing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = kit.ledger.reserve

    def then_lose_the_key(*arguments: Any, **more: Any) -> str:
        call_id = reserve(*arguments, **more)
        monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
        return call_id

    monkeypatch.setattr(kit.ledger, "reserve", then_lose_the_key)
    for use_batches in (False, True):
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        with pytest.raises(TeacherUnavailableError, match="ANTHROPIC_API_KEY is not set") as caught:
            kit.teacher(use_batches=use_batches).references([ask()], may_wait=True)
        assert caught.value.wake_in_seconds is None
    assert kit.endpoint.requests == []
    assert (kit.totals.released_calls, kit.totals.forfeited_calls) == (2, 0)
    assert kit.totals.spent_pico == kit.totals.reserved_pico == 0


def test_the_key_appears_in_no_file_log_exception_or_repr(
    kit: Kit, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    teacher = kit.teacher(timeout_seconds=5.0)
    kit.endpoint.script.extend(
        [
            reference(),
            error(401, "authentication_error", f"the key {KEY} is not valid"),
            error(500, message=KEY),
            error(500, message=KEY),
            Reply(drop=True),
            Reply(drop=True),
            Reply(raw=b"<html>"),
        ]
    )
    for number in range(5):
        try:
            teacher.references([ask(str(number))])
        except TeacherUnavailableError as failure:
            seen.append("".join(traceback.TracebackException.from_exception(failure, capture_locals=True).format()))
            seen.append(repr(failure) + repr(vars(failure)))
    assert len(seen) == 6
    kit.by_batch([ask("in a batch")])
    seen += [repr(teacher), repr(vars(teacher)), caplog.text, *capfd.readouterr()]
    assert any("authorization" in headers for _, _, headers, _ in kit.endpoint.requests)
    assert not [text for text in seen if KEY in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
