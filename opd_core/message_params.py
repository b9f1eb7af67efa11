"""The body of one request to Claude, as plain data: sent, counted for a reservation, and part of the cache key."""

from __future__ import annotations

import json
import re
from typing import Any

from opd_core.guidance import TeacherRequest

API_VERSION = "2026-10-21"
DEFAULT_TEACHER = "claude-sonnet-5-5"
_GENERATION = re.compile(r"claude-[a-z]+-(\d+)")


def message_params(request: TeacherRequest, model: str, max_tokens: int) -> dict[str, Any]:
    """The arguments of one Messages call.

    The instructions are a system block that the provider may keep for five minutes; the data follow it. Everything that
    could change the price unseen is said outright: standard tier, no fixed region, no tools. There is no temperature:
    the API has none.
    """
    output: dict[str, Any] = {"format": {"type": "json_schema", "schema": request.schema}}
    generation = _GENERATION.match(model)
    if generation and int(generation[1]) >= 5:
        output["effort"] = "low"  # these models think before they write, and thinking is billed as output
    return {
        "model": model,
        "max_tokens": max_tokens,
        "system": [{"type": "text", "text": request.instructions, "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": request.data}],
        "output_config": output,
        "service_tier": "standard_only",
        "inference_geo": "global",
    }


def body_bytes(params: dict[str, Any]) -> int:
    """UTF-8 bytes of a request's body, at least as many as are sent."""
    return len(json.dumps(params, ensure_ascii=True).encode())


def reply_token_limit(rollout_max_tokens: int) -> int:
    """`max_tokens` of a request: room for thinking, a remark, and an answer as long as the student's longest.

    Claude's tokenizer makes about 30 % more tokens of a text than most; JSON adds some.
    """
    return min(16_000, 1_536 + 2 * rollout_max_tokens)
