"""What may be learnt from: the run's check and extractor as filters on the teacher's and the student's texts."""

from __future__ import annotations

from dataclasses import dataclass

from opd_core.config import RunConfig
from opd_core.extractor import WHOLE, CheckSpec, ExtractorSpec, extract, needs_reference, score
from opd_core.matching import same_answer
from opd_core.prompt_files import PromptExample


@dataclass(frozen=True)
class AnswerRule:
    """The check, if there is one, and where in a text the final answer stands."""

    check: CheckSpec | None = None
    extractor: ExtractorSpec = WHOLE

    @staticmethod
    def of(config: RunConfig) -> AnswerRule:
        """The rule of a run."""
        return AnswerRule(config.check, config.extractor or WHOLE)

    def score(self, text: str, example: PromptExample) -> float | None:
        """The check's score, 0 to 1; None when there is no check, or it lacks the reference it needs."""
        if self.check is None or (needs_reference(self.check) and example.reference is None):
            return None
        return score(self.check, text, example, self.extractor)

    def is_wrong(self, text: str, example: PromptExample) -> bool:
        """Whether a text is known not to pass: one of the teacher's then is no example to follow."""
        return self.score(text, example) == 0.0

    def equals(self, text: str, reference: str, example: PromptExample) -> bool:
        """Whether an answer is as good as the reference: it passes the check, or has the same final answer."""
        if self.score(text, example) == 1.0:
            return True
        own, wanted = extract(self.extractor, text), extract(self.extractor, reference)
        if own is None or wanted is None:
            return False
        return own == wanted if self.extractor.kind == "whole" else same_answer(own, wanted)
