"""Which requests each method makes of a paid teacher, counted without a model as `training/` makes them.

Tests compare the two.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from opd_core.config import RunConfig
from opd_core.control.estimate.teacher_bill import Bill, Biller
from opd_core.control.preflight.checking import Preflight
from opd_core.prompt_files import PromptExample

LEVELS = ("examples", "lesson", "critique", "reference")
EXAMPLE_ROUNDS, MAX_EXAMPLE_CHARACTERS = 3, 4096  # as teachers/coach.py chooses its examples
WRONG_SHARE = 0.5  # of the student's answers that will need the teacher's reference in method sft


class MethodCalls:
    """The bill of each method for one checked run."""

    def __init__(self, preflight: Preflight, biller: Biller) -> None:
        self.biller, self._config = biller, preflight.config
        self._train, self._held_out = preflight.prompts.train, preflight.prompts.held_out
        self._uses = prompt_uses(len(self._train), preflight.config)

    def contrast(self) -> Bill:
        """A reference for every prompt that is used; all can wait for a batch."""
        return self._references([*self._used(), *self._scored_by_references("contrast", None)], can_wait=True)

    def sft(self, level: str | None) -> Bill:
        """References for every prompt (level "reference"), else guidance on every answer, and references for some."""
        bill = self._references(self._scored_by_references("sft", level), can_wait=True)
        if level is None:
            self._guidance(bill)
        used = [example.messages for example in self._used()]
        self.biller.references(bill, used, WRONG_SHARE if level is None else 1.0, can_wait=True)
        return bill

    def coach(self, level: str) -> Bill:
        """What one of LEVELS asks for."""
        needed = self._scored_by_references("coach", level)
        if level == "reference" or self._config.use_sft_mixup:
            needed = [*self._used(), *needed]
        bill = self._references(needed)
        self._level(bill, level)
        return bill

    def probe(self) -> Bill:
        """Every level that is tried, on the probe's held-out prompts; judged where there is no check."""
        config, bill = self._config, Bill()
        tried = self._held_out[: config.probe_max_prompts]
        levels = LEVELS if config.guidance_level is None else (config.guidance_level,)
        if "examples" in levels:
            self._examples(bill)
        if "lesson" in levels:
            self._lessons(bill, 1)
        if {"critique", "reference"} & set(levels):  # the same requests for both
            for example in tried:
                self.biller.guidance(bill, example.messages, 1)
        if "reference" in levels:
            self.biller.references(bill, [example.messages for example in tried])
        if config.check is None:
            for example in tried * len(levels):
                self.biller.judgement(bill, example.messages)
        return bill

    def _level(self, bill: Bill, level: str) -> None:
        config = self._config
        if level == "examples":
            self._examples(bill)
        elif level == "lesson":
            self._lessons(bill, config.num_training_steps)
        else:
            self._guidance(bill)

    def _lessons(self, bill: Bill, count: int) -> None:
        answers = self._config.batch_size * self._config.num_rollouts_per_prompt
        self.biller.lesson(bill, [example.messages for example in self._used()], answers, count)

    def _guidance(self, bill: Bill) -> None:
        for index, uses in self._uses.items():
            self.biller.guidance(bill, self._train[index].messages, uses * self._config.num_rollouts_per_prompt)

    def _examples(self, bill: Bill) -> None:
        """The first references serve, probably; each further round asks for those that did not."""
        waiting = example_order(self._config, self._train)
        missing = max(0, self._config.num_guidance_examples - len(self._config.teacher_examples))
        asked = [example.messages for example in waiting[: EXAMPLE_ROUNDS * missing]]
        self.biller.references(bill, asked[:missing])
        self.biller.references(bill, asked[missing:], share=0.0)

    def _references(self, examples: Sequence[PromptExample], *, can_wait: bool = False) -> Bill:
        bill = Bill()
        self.biller.references(bill, [example.messages for example in examples], can_wait=can_wait)
        return bill

    def _used(self) -> list[PromptExample]:
        return [self._train[index] for index in self._uses]

    def _scored_by_references(self, method: str, level: str | None) -> list[PromptExample]:
        """The held-out prompts, where the NLL of their references picks the best adapter."""
        wanted, fixed = self._config.primary_metric, method == "coach" and level == "examples"
        return self._held_out if wanted == "reference_nll" or (wanted != "task_score" and not fixed) else []


def prompt_uses(prompts: int, config: RunConfig) -> Counter[int]:
    """How often each training prompt comes up: whole passes, then the beginning of one shuffled as a run does it."""
    passes, rest = divmod(config.num_training_steps * config.batch_size, prompts)
    order = list(range(prompts))
    random.Random(f"{config.seed}/{passes}").shuffle(order)
    uses = Counter(dict.fromkeys(range(prompts), passes) if passes else {})
    uses.update(order[:rest])
    return uses


def example_order(config: RunConfig, train: Sequence[PromptExample]) -> list[PromptExample]:
    """The training prompts in the order in which examples are chosen from them."""
    fitting = [example for example in train if len(example.prompt) <= MAX_EXAMPLE_CHARACTERS]
    random.Random(f"{config.seed}/guidance examples").shuffle(fitting)
    return fitting
