"""Asking the text teacher while the student still writes: a step's rollouts are drawn in parts.

    write part 1 │ write part 2 │ …      │ update
                 │ ask about 1  │ ask about 2 │

Nothing is older than it would be otherwise: the update waits for all of the step's replies, and divergences are taken
under the present weights. Only how the rollouts' random numbers are dealt out differs from a step drawn in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from opd_core.guidance import Guidance, Judgement, JudgePair, Reference
from opd_core.prompt_files import PromptExample
from opd_core.training.references import References
from opd_core.training.teaching import TeacherStats, TextTeacher
from opd_core.types import Message, Rollout

PARTS = 4
Wanted = Literal["guidance", "references", "nothing"]


class RememberingTeacher:
    """A `TextTeacher` that can be asked for guidance ahead; each reply that was is given out once."""

    def __init__(self, teacher: TextTeacher) -> None:
        self.name = teacher.name
        self._teacher = teacher
        self._known: dict[str, Guidance | None] = {}

    def ask_ahead(self, rollouts: Sequence[Rollout]) -> None:
        """Ask about these rollouts and remember the replies."""
        for rollout, guidance in zip(rollouts, self._teacher.guidance(rollouts), strict=True):
            self._known[rollout.rollout_id] = guidance

    def guidance(self, rollouts: Sequence[Rollout]) -> list[Guidance | None]:
        """See `TextTeacher.guidance`."""
        missing = [rollout for rollout in rollouts if rollout.rollout_id not in self._known]
        if missing:
            self.ask_ahead(missing)
        return [self._known.pop(rollout.rollout_id) for rollout in rollouts]

    def references(
        self, conversations: Sequence[Sequence[Message]], *, sample_index: int = 0, may_wait: bool = False
    ) -> list[Reference | None]:
        """See `TextTeacher.references`."""
        return self._teacher.references(conversations, sample_index=sample_index, may_wait=may_wait)

    def lesson(self, rollouts: Sequence[Rollout]) -> str | None:
        """See `TextTeacher.lesson`."""
        return self._teacher.lesson(rollouts)

    def judge(self, pairs: Sequence[JudgePair]) -> list[Judgement | None]:
        """See `TextTeacher.judge`."""
        return self._teacher.judge(pairs)

    def stats(self) -> TeacherStats:
        """See `TextTeacher.stats`."""
        return self._teacher.stats()


class Ahead:
    """Asks in one background thread for what the step's update will need.

    Args:
        wanted: "guidance" on each rollout, "references" of all the step's prompts, or "nothing".
    """

    def __init__(self, teacher: RememberingTeacher, references: References, wanted: Wanted) -> None:
        self._teacher, self._references, self._wanted = teacher, references, wanted
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ask-ahead")
        self._asked: list[Future[None]] = []
        self._has_failed = False

    def begin(self, examples: Sequence[PromptExample]) -> None:
        """The step's prompts are known, nothing is written yet."""
        if self._wanted == "references":
            self._submit(lambda: self._references.texts(examples))

    def written(self, rollouts: Sequence[Rollout]) -> None:
        """A part of the step's rollouts is written."""
        if self._wanted == "guidance":
            self._submit(lambda: self._teacher.ask_ahead(rollouts))

    def join(self) -> None:
        """Wait for what was asked.

        Raises:
            OPDError: the first thing that went wrong; nothing more of the step was asked after it.
        """
        asked, self._asked = self._asked, []
        failures = [failure for future in asked if (failure := future.exception()) is not None]
        self._has_failed = False
        if failures:
            raise failures[0]

    def _submit(self, ask: Callable[[], object]) -> None:
        def run() -> None:
            if self._has_failed:
                return  # a refusal or a cap met once is not met again, nor paid for again
            try:
                ask()
            except BaseException:
                self._has_failed = True
                raise

        self._asked.append(self._thread.submit(run))

    def close(self) -> None:
        """End the thread; what has not been sent yet is not."""
        self._thread.shutdown(wait=True, cancel_futures=True)
