"""`sft`: likelihood of the teacher's text, as near to what the student wrote as the teacher can put it.

    loss = Σ NLL(target) / Σ |target|

The target for a rollout, by the teacher's verdict on it:

    correct      the student's own ids, when it came to an end
    repairable   the teacher's minimal edit of the student's answer
    wrong        the teacher's reference for the prompt

At `guidance_level` reference nothing the student writes is looked at: the targets are the references of the step's
prompts, one call a prompt that all runs share, and no rollouts are drawn.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx

from opd_core.config import RunConfig
from opd_core.guidance import Guidance
from opd_core.prompt_files import PromptExample
from opd_core.training.answers import AnswerRule
from opd_core.training.lora import Student
from opd_core.training.references import References
from opd_core.training.teaching import TextTeacher
from opd_core.training.tokenization import completion_ids
from opd_core.training.updates import AdapterOptimizer, IdPair, Ids, StepResult, nll_gradient
from opd_core.types import Rollout


class SftUpdater:
    """One update towards the teacher's texts; an `updates.Updater`."""

    def __init__(self, student: Student, teacher: TextTeacher, references: References, config: RunConfig) -> None:
        self.optimizer = AdapterOptimizer(student, config)
        self._student, self._teacher, self._references, self._config = student, teacher, references, config
        self._edits = config.guidance_level != "reference"
        self._rule = AnswerRule.of(config)

    def needs_rollouts(self, step: int) -> bool:
        """See `Updater.needs_rollouts`."""
        return self._edits

    def update(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample], step: int) -> StepResult:
        """See `Updater.update`."""
        asked, result = time.perf_counter(), StepResult()
        pairs = self._targets(rollouts, examples, result) if self._edits else self._references.pairs(examples)
        started = time.perf_counter()
        result.teacher_seconds = started - asked
        result.learned_from = len(pairs)
        if not pairs:
            return result
        tokens = sum(len(answer) for _, answer in pairs)
        gradient, sums = nll_gradient(self._student, pairs, [1.0 / tokens] * len(pairs))
        result.sft_loss = result.total_loss = sum(sums) / tokens
        result.update_seconds = time.perf_counter() - started
        self.optimizer.apply(gradient, step, result)
        return result

    def arrays(self) -> dict[str, mx.array]:
        """See `Updater.arrays`."""
        return {}

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """See `Updater.load_arrays`."""

    def _targets(
        self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample], result: StepResult
    ) -> list[IdPair]:
        by_id = {example.prompt_id: example for example in examples}
        counts: Counter[str] = Counter(targets_own=0, targets_edit=0, targets_reference=0)
        targets: list[tuple[Rollout, Ids | None]] = []
        for rollout, guidance in zip(rollouts, self._teacher.guidance(rollouts), strict=True):
            ids = None if guidance is None else self._near(rollout, guidance, by_id[rollout.prompt_id], counts)
            targets.append((rollout, ids))
        # asked for together, and only for the prompts that need one
        lacking = [by_id[rollout.prompt_id] for rollout, ids in targets if ids is None]
        found = dict(zip([example.prompt_id for example in lacking], self._references.answer_ids(lacking), strict=True))
        pairs = []
        for rollout, ids in targets:
            answer = found[rollout.prompt_id] if ids is None else ids
            counts["targets_reference"] += ids is None and answer is not None
            if answer is not None:
                pairs.append((rollout.prompt_ids, answer))
        result.extras |= counts
        return pairs

    def _near(self, rollout: Rollout, guidance: Guidance, example: PromptExample, counts: Counter[str]) -> Ids | None:
        """The target close to the student's own answer; None when only the reference will do."""
        wrong = self._rule.is_wrong(rollout.completion, example)
        if guidance.verdict == "correct" and rollout.finish_reason == "stop" and not wrong:
            counts["targets_own"] += 1
            return rollout.completion_ids
        edit = guidance.minimal_edit
        if edit is None or self._rule.is_wrong(edit, example):
            return None
        ids = completion_ids(self._student.base.tokenizer, edit)
        if len(ids) > self._config.rollout_max_tokens:
            return None
        counts["targets_edit"] += 1
        return ids
