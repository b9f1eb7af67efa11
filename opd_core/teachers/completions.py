"""The record of every text the teacher gave: `teacher_completions/{run_id}_completions.jsonl`.

Append-only, never cut back, one line a reply: cached ones too, and those that were paid for and cannot be used. The
files themselves (private, whole lines) are the caller's: `state.jsonl.JsonlFile(path).append`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opd_core.money.amounts import usd_from_pico
from opd_core.teachers.replies import Reply
from opd_core.types import clean_text

MAX_UNREADABLE_CHARS = 4_000

Append = Callable[[Iterable[Mapping[str, Any]]], None]


@dataclass(frozen=True)
class Completion:
    """One reply and how it was come by.

    Attributes:
        reply: None when what came cannot be read as a message; `model` (asked for) and `body` then say what is known.
        standing: as `Reply.standing`; "malformed" also when the text is not what the schema promises.
        cost_pico: what this run paid for it: 0 for a cache hit, the whole reservation when the reply says no price.
        unusable: why the reply was charged in full and not kept.
        latency_seconds: of the call alone, without waiting for a slot; 0 for a cache hit.
    """

    kind: str
    request_key: str
    template_version: str
    sample_index: int
    reply: Reply | None
    standing: str
    cache_hit: bool
    model: str = ""
    body: str = ""
    unusable: str | None = None
    cost_pico: int = 0
    latency_seconds: float = 0.0
    request_id: str | None = None
    batch_id: str | None = None


class CompletionsLog:
    """Writes completions, each into the file of the run that pays for it; safe from several threads."""

    def __init__(self, append_of: Callable[[str], Append], now: Callable[[], datetime]) -> None:
        self._append_of = append_of
        self._now = now
        self._lock = threading.Lock()

    def write(self, run_id: str, completion: Completion) -> None:
        """Append one line to a run's file."""
        reply = completion.reply
        usage = reply.usage if reply else None
        record = {
            "timestamp": self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "kind": completion.kind,
            "request_key": completion.request_key,
            "template_version": completion.template_version,
            "sample_index": completion.sample_index,
            "model": reply.model if reply else completion.model,
            "text": reply.text if reply else clean_text(completion.body, MAX_UNREADABLE_CHARS),
            "standing": completion.standing,
            "unusable": completion.unusable,
            "stop_reason": reply.stop_reason if reply else None,
            "refusal": reply.refusal if reply else None,
            "input_tokens": usage.prompt_tokens if usage else None,
            "cached_input_tokens": usage.cache_read_tokens if usage else None,
            "output_tokens": usage.output_tokens if usage else None,
            "latency_ms": round(completion.latency_seconds * 1000, 1),
            "cost_usd": usd_from_pico(completion.cost_pico),
            "cost_pico": completion.cost_pico,
            "cache_hit": completion.cache_hit,
            "request_id": completion.request_id,
            "batch_id": completion.batch_id,
        }
        with self._lock:
            self._append_of(run_id)([record])
