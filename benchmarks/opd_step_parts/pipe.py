"""A contestant's side of its pipe: one JSON line in, one JSON line out. Standard library only, for every environment.

→ {"do": "check"}   one step on the work's fixed completions   ← {"loss", "gradient_norm"}
→ {"do": "step"}    one step on the next prompts               ← seconds by phase, new_tokens, peak_rss_bytes
→ {"do": "end"}
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Protocol

from opd_core.peak_memory import peak_rss_bytes


class Pipe:
    """Requests from standard input, answers to standard output; what libraries print goes to the error stream."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def receive(self) -> str:
        """What to do next; "end" when the other side is gone."""
        line = sys.stdin.readline()
        return str(json.loads(line)["do"]) if line else "end"

    def send(self, answer: dict[str, Any]) -> None:
        """Answer the request, with the peak so far."""
        self._answers.write(json.dumps({**answer, "peak_rss_bytes": peak_rss_bytes()}) + "\n")
        self._answers.flush()


class Steps(Protocol):
    """What a contestant can do."""

    def check(self) -> dict[str, float]:
        """One update on the fixed completions."""
        ...

    def step(self) -> dict[str, float]:
        """One whole step on the next prompts."""
        ...


def serve(pipe: Pipe, contestant: Steps) -> None:
    """Answer until the other side has had enough."""
    pipe.send({})
    while (do := pipe.receive()) != "end":
        pipe.send(contestant.check() if do == "check" else contestant.step())
