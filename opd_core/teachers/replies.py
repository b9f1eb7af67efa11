"""Reading what came over the wire: the client library checks nothing, so everything is checked here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from opd_core.errors import BadUsageError
from opd_core.matching import STRICT_JSON
from opd_core.money.usage import Usage
from opd_core.types import clean_text

MAX_BODY_CHARS = 4_000_000
FRONTIER_REFUSAL = "frontier_llm"

Standing = Literal["complete", "refused", "truncated", "malformed"]


class BadReplyError(ValueError):
    """A status 200 that is not a message, or does not say what it cost; the call is charged in full."""


@dataclass(frozen=True)
class Reply:
    """One message of the provider.

    Attributes:
        text: its text blocks; thinking is not part of it.
        refusal: the category of a refusal, "" when none is named; None when it is no refusal.
    """

    text: str
    stop_reason: str
    refusal: str | None
    model: str
    usage: Usage

    @property
    def standing(self) -> Standing:
        """Whether the text can be used: only a reply that ended by itself and says something is complete."""
        if self.stop_reason == "refusal":
            return "refused"
        if self.stop_reason in ("max_tokens", "model_context_window_exceeded"):
            return "truncated"
        return "complete" if self.stop_reason in ("end_turn", "stop_sequence") and self.text.strip() else "malformed"


def decode(text: str) -> Any:
    """The JSON value of a body.

    Raises:
        BadReplyError: it is none, or is absurdly large.
    """
    if len(text) > MAX_BODY_CHARS:
        raise BadReplyError(f"a reply of more than {MAX_BODY_CHARS:,} characters")
    try:
        return STRICT_JSON.decode(text.strip())
    except (ValueError, RecursionError):
        raise BadReplyError("a reply that is not JSON") from None


def without_secrets(body: str, redact: Callable[[str], str]) -> str:
    """The body with `redact` applied to every string in it, also where JSON spells it with escapes.

    A body in which there is nothing to redact stays as it is, to the byte.
    """
    try:
        found = decode(body)
        clean = _redacted(found, redact)
    except (BadReplyError, RecursionError):
        return redact(body)
    return body if clean == found else json.dumps(clean)


def _redacted(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_redacted(item, redact) for item in value]
    if isinstance(value, dict):
        return {redact(name): _redacted(item, redact) for name, item in value.items()}
    return value


def read_message(body: Any) -> Reply:
    """Check a decoded body and take out what is needed.

    Raises:
        BadReplyError: not a finished message of the assistant with valid usage; the message says what is wrong.
    """
    if not isinstance(body, dict) or body.get("type") != "message" or body.get("role") != "assistant":
        raise BadReplyError("a reply that is not a message")
    blocks, stop_reason, model = body.get("content"), body.get("stop_reason"), body.get("model")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise BadReplyError("a message without content blocks")
    if not isinstance(stop_reason, str) or not stop_reason:
        raise BadReplyError("a message without a stop reason, which was cut off on the way")
    if not isinstance(model, str) or not model:
        raise BadReplyError("a message that does not name its model")
    texts = [block.get("text") for block in blocks if block.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise BadReplyError("a text block without text")
    try:
        usage = Usage.parse(body.get("usage"))
    except BadUsageError as error:
        raise BadReplyError(clean_text(str(error), 300)) from None
    return Reply("".join(map(str, texts)), stop_reason, _refusal(stop_reason, body.get("stop_details")), model, usage)


def _refusal(stop_reason: str, details: object) -> str | None:
    if stop_reason != "refusal":
        return None
    category = details.get("category") if isinstance(details, dict) else None
    return category if isinstance(category, str) else ""
