"""Records and names shared by all rooms: no MLX, no network, no SQL."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

RunState = Literal[
    "queued", "preparing", "running", "waiting", "stopping", "completed", "stopped", "failed", "interrupted"
]
EndReason = Literal[
    "finished", "early_stop", "budget", "by_user", "diverged", "teacher_refused", "error", "worker_died"
]
JobKind = Literal["distillation", "comparison", "probe"]
FinishReason = Literal["stop", "length"]

LIVE_STATES: tuple[RunState, ...] = ("preparing", "running", "waiting", "stopping")
END_STATES: tuple[RunState, ...] = ("completed", "stopped", "failed", "interrupted")
RESUMABLE_STATES: tuple[RunState, ...] = ("stopped", "failed", "interrupted")

Message = dict[str, str]
"""One chat turn: `{"role": "system" | "user" | "assistant", "content": text}`."""


@dataclass(frozen=True)
class Rollout:
    """One completion the student wrote, with everything needed to score it again.

    `completion_ids` holds the stop token when `finish_reason` is "stop"; the ids are made once and never decoded and
    encoded again. `sampling_logprobs` is parallel to `completion_ids`: the natural-log probability of each id
    under the distribution it was drawn from (after temperature and top-p); all zeros for greedy decoding.
    """

    rollout_id: str
    step: int
    prompt_id: str
    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    completion: str
    completion_ids: tuple[int, ...]
    sampling_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    timestamp: str

    @property
    def prompt(self) -> str:
        """The last user turn, as the person wrote it."""
        return self.messages[-1]["content"]

    def as_record(self) -> dict[str, object]:
        """The JSON object of one line in `rollouts/…jsonl`."""
        return {
            "rollout_id": self.rollout_id,
            "step": self.step,
            "prompt_id": self.prompt_id,
            "prompt": self.prompt,
            "messages": list(self.messages),
            "completion": self.completion,
            "prompt_ids": list(self.prompt_ids),
            "completion_ids": list(self.completion_ids),
            "sampling_logprobs": [round(value, 6) for value in self.sampling_logprobs],
            "finish_reason": self.finish_reason,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "timestamp": self.timestamp,
        }


PLAIN_NAME = re.compile(r"(?:<\|)?[\w.:+#@/▁-]{1,100}(?:\|>)?")


def plain_name(text: str) -> str:
    """A name out of a model's or a user's file, in quotes, fit to stand in a sentence of ours: one word, or no word.

    A text with spaces or markup could read as an instruction, so only its length is told.
    """
    return repr(text) if PLAIN_NAME.fullmatch(text) else f"(a text of {len(text)} characters that is no plain name)"


def clean_text(text: str, limit: int = 500) -> str:
    """Make text from a model or a file safe to show: escape control and format characters, cap the length.

    Newline and tab stay. Everything else of Unicode category C (control, format such as bidi overrides,
    surrogates, private use) and the line and paragraph separators are written as escapes, so that a terminal or a chat
    window cannot be steered by them.

    Args:
        text: any text.
        limit: most characters of the original kept; a longer text ends in a note of how much was cut.
    """
    kept = text[:limit]
    safe = "".join(
        character
        if character in "\n\t" or not (unicodedata.category(character)[0] == "C" or character in "\u2028\u2029")
        else character.encode("unicode_escape").decode("ascii")
        for character in kept
    )
    return safe if len(text) <= limit else f"{safe}… [{len(text) - limit} more characters]"
