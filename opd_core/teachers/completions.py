"""The record of every text the teacher gave: `teacher_completions/{run_id}_completions.jsonl`.

Append-only, never cut back, one line a reply, cached ones included. The file itself (private, whole lines) is the
caller's: `state.jsonl.JsonlFile(path).append`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opd_core.money.amounts import usd_from_pico
from opd_core.teachers.replies import Reply

Append = Callable[[Iterable[Mapping[str, Any]]], None]


@dataclass(frozen=True)
class Completion:
    """One reply and how it was come by.

    Attributes:
        standing: as `Reply.standing`; "malformed" also when the text is not what the schema promises.
        cost_pico: what this run paid for it: 0 for a cache hit.
        latency_seconds: of the call alone, without waiting for a slot; 0 for a cache hit.
    """

    kind: str
    request_key: str
    template_version: str
    sample_index: int
    reply: Reply
    standing: str
    cache_hit: bool
    cost_pico: int = 0
    latency_seconds: float = 0.0
    request_id: str | None = None
    batch_id: str | None = None


class CompletionsLog:
    """Writes completions; safe from several threads."""

    def __init__(self, append: Append, now: Callable[[], datetime]) -> None:
        self._append = append
        self._now = now
        self._lock = threading.Lock()

    def write(self, completion: Completion) -> None:
        """Append one line."""
        reply, usage = completion.reply, completion.reply.usage
        record = {
            "timestamp": self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "kind": completion.kind,
            "request_key": completion.request_key,
            "template_version": completion.template_version,
            "sample_index": completion.sample_index,
            "model": reply.model,
            "text": reply.text,
            "standing": completion.standing,
            "stop_reason": reply.stop_reason,
            "refusal": reply.refusal,
            "input_tokens": usage.prompt_tokens,
            "cached_input_tokens": usage.cache_read_tokens,
            "output_tokens": usage.output_tokens,
            "latency_ms": round(completion.latency_seconds * 1000, 1),
            "cost_usd": usd_from_pico(completion.cost_pico),
            "cost_pico": completion.cost_pico,
            "cache_hit": completion.cache_hit,
            "request_id": completion.request_id,
            "batch_id": completion.batch_id,
        }
        with self._lock:
            self._append([record])
