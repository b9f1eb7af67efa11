from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import LedgerDamagedError
from opd_core.money.ledger import Ledger
from opd_core.money.response_cache import ResponseCache, request_key

REQUEST: dict[str, Any] = {
    "base_url": "https://api.example.com",
    "api_version": "2026-10-21",
    "model": "claude-sonnet-5-5",
    "params": {"max_tokens": 100, "system": "Be brief."},
    "messages": [{"role": "user", "content": "Hi"}],
    "template_version": "reference-1",
    "sample_index": 0,
}


def buy(path: Path, key: str, body: str) -> None:
    ledger = Ledger(path, month_limit_pico=1000)
    ledger.open_budget("run", 1000)
    ledger.settle(ledger.reserve("run", key, "m", "v", 10, "worker"), 5, "{}", None, body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_url", "https://other.example.com"),
        ("api_version", "2026-10-22"),
        ("model", "claude-opus-5-5"),
        ("params", {"max_tokens": 101, "system": "Be brief."}),
        ("messages", [{"role": "user", "content": "Hi "}]),
        ("template_version", "reference-2"),
        ("sample_index", 1),
    ],
)
def test_everything_that_changes_the_reply_changes_the_key(name: str, value: object) -> None:
    assert request_key(**REQUEST | {name: value}) != request_key(**REQUEST)


def test_the_order_of_parameters_does_not_change_the_key() -> None:
    params = {"system": "Be brief.", "max_tokens": 100}
    assert request_key(**REQUEST | {"params": params}) == request_key(**REQUEST)


def test_the_key_is_stable_across_versions_of_this_program() -> None:
    # A change here means that every paid reply of every user is bought again.
    canonical = (
        '{"api_version":"2026-10-21","base_url":"https://api.example.com","messages":[{"content":"Hi","role":"user"}],'
        '"model":"claude-sonnet-5-5","params":{"max_tokens":100,"system":"Be brief."},"sample_index":0,'
        '"template_version":"reference-1"}'
    )
    assert request_key(**REQUEST) == hashlib.sha256(canonical.encode()).hexdigest()


def test_any_text_has_a_key_and_what_is_not_json_has_none() -> None:
    odd = request_key(**REQUEST | {"messages": [{"role": "user", "content": "\ud800 \x00 é"}]})
    assert len(odd) == 64
    with pytest.raises(ValueError, match="JSON"):
        request_key(**REQUEST | {"params": {"temperature": float("nan")}})


def test_what_was_never_bought_is_not_there(path: Path) -> None:
    assert ResponseCache(path).get("key") is None
    assert not path.exists()


def test_a_reply_comes_back_as_it_was_stored(path: Path) -> None:
    body = json.dumps({"text": 'ü \u2028 "quoted"\n'}, ensure_ascii=False)
    buy(path, "key", body)
    assert ResponseCache(path).get("key") == body
    assert ResponseCache(path).get("other") is None


def test_a_changed_reply_is_not_used(path: Path) -> None:
    buy(path, "key", "the reply")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER responses_never_change")
        connection.execute("UPDATE responses SET body = 'another'")
    with pytest.raises(LedgerDamagedError, match="changed after it was paid for"):
        ResponseCache(path).get("key")
