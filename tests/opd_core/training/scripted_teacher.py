"""A text teacher that follows a script: every reply is computed from the prompt, and every call is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from opd_core.guidance import Guidance, Judgement, JudgePair, Preference, Reference
from opd_core.training.teaching import TeacherStats
from opd_core.types import Message, Rollout

PRICE = 0.01


def repairable(rollout: Rollout) -> Guidance:
    """Guidance that says what is wrong with this very answer."""
    return Guidance("repairable", 0.5, f"say {rollout.prompt}", f"{rollout.prompt}?", "be loud")


def repeat(prompt: str) -> str | None:
    """The reference: the prompt again."""
    return prompt


@dataclass
class ScriptedTeacher:
    """A `TextTeacher`; `before_call` may raise in the place of a call, given how many were made."""

    reference: Callable[[str], str | None] = repeat
    guide: Callable[[Rollout], Guidance | None] = repairable
    shared_lesson: str | None = "Be loud."
    prefer: Callable[[JudgePair], Preference] = lambda pair: "tie"
    before_call: Callable[[int], None] = lambda calls: None
    name: str = "scripted"
    calls: list[tuple[str, str]] = field(default_factory=list)
    patient: list[bool] = field(default_factory=list)
    """Of each reference, whether it was said that it may wait."""

    def references(
        self, conversations: Sequence[Sequence[Message]], *, sample_index: int = 0, may_wait: bool = False
    ) -> list[Reference | None]:
        self.patient.extend([may_wait] * len(conversations))
        prompts = [conversation[-1]["content"] for conversation in conversations]
        for prompt in prompts:
            self._call("reference", prompt)
        texts = [self.reference(prompt) for prompt in prompts]
        return [None if text is None else Reference(text) for text in texts]

    def guidance(self, rollouts: Sequence[Rollout]) -> list[Guidance | None]:
        for rollout in rollouts:
            self._call("guidance", rollout.rollout_id)
        return [self.guide(rollout) for rollout in rollouts]

    def lesson(self, rollouts: Sequence[Rollout]) -> str | None:
        self._call("lesson", ", ".join(rollout.rollout_id for rollout in rollouts))
        return self.shared_lesson

    def judge(self, pairs: Sequence[JudgePair]) -> list[Judgement | None]:
        for pair in pairs:
            self._call("judge", pair.first)
        return [Judgement(self.prefer(pair), True) for pair in pairs]

    def stats(self) -> TeacherStats:
        calls = len(self.calls)
        return TeacherStats(calls=calls, latency_ms_mean=20.0 if calls else 0.0, cost_usd=PRICE * calls)

    def count(self, kind: str) -> int:
        """How many calls of a kind were made."""
        return sum(made == kind for made, _ in self.calls)

    def _call(self, kind: str, about: str) -> None:
        self.before_call(len(self.calls))
        self.calls.append((kind, about))
