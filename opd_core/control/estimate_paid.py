"""What a run would pay its teacher, for its own method and for the others: calls, tokens, dollars, and the budget.

The worst case is the sum of what the ledger would reserve: every request at its most, each sent once. The light half
counts requests as the methods make them (`training/`); tests compare the two.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from opd_core.config import RunConfig
from opd_core.control.preflight import Preflight
from opd_core.control.preflight_paid import month_ledger
from opd_core.control.teacher_bill import Bill, Biller
from opd_core.money.amounts import format_usd, pico_from_usd, usd_from_pico
from opd_core.prompt_files import PromptExample
from opd_core.settings import Settings

LEVELS = ("examples", "lesson", "critique", "reference")
EXAMPLE_ROUNDS, MAX_EXAMPLE_CHARACTERS = 3, 4096  # as teachers/coach.py chooses its examples
WRONG_SHARE = 0.5  # of the student's answers that will need the teacher's reference in method sft


@dataclass(frozen=True)
class MethodCost:
    """The teacher's price of one method; "probe" is `auto`'s first phase, and `start_probe`'s whole job.

    `calls` are those to the provider, `cache_hits` requests that a stored reply answers. `batch_*`: with
    teacher_batch_api; `None` where no request can wait for a batch.
    """

    method: str
    guidance_level: str | None
    calls: int
    cache_hits: int
    input_tokens: int
    output_tokens: int
    expected_usd: float
    worst_usd: float
    worst_pico: int
    batch_expected_usd: float | None
    batch_worst_usd: float | None
    largest_call_usd: float


@dataclass(frozen=True)
class PaidEstimate:
    """What the teacher would cost. `chosen` is the configuration's own method; `methods` are all, for comparison.

    `pays_usd` and `pays_at_most_usd` are the chosen method's, with batches when the configuration uses them.
    `uncovered_usd` is by how much the expected cost exceeds what may be spent; `coverage` says in a sentence what the
    budget will and will not cover.
    """

    model: str
    prices_version: str
    chosen: MethodCost
    methods: tuple[MethodCost, ...]
    pays_usd: float
    pays_at_most_usd: float
    budget_usd: float
    month_left_usd: float
    uncovered_usd: float
    coverage: str
    notes: tuple[str, ...]


def estimate_paid(preflight: Preflight, settings: Settings, completion_tokens: float) -> PaidEstimate:
    """Price a checked configuration; looks stored replies up, asks nobody, writes nothing."""
    config = preflight.config
    counter = _Counter(preflight, Biller(config, settings, completion_tokens))
    methods = [_cost("probe", config.guidance_level, counter.probe())]
    methods += [_cost("coach", level, counter.coach(level)) for level in LEVELS]
    methods.append(_cost("contrast", None, counter.contrast()))
    methods += [_cost("sft", level, counter.sft(level)) for level in (None, "reference")]
    chosen = _chosen(config, methods)
    month = month_ledger(settings).month_totals()
    month_left = max(0, pico_from_usd(settings.monthly_budget_usd) - month.spent_pico - month.reserved_pico)
    budget = 0 if config.teacher_cache_only else min(pico_from_usd(config.max_budget_usd), month_left)
    expected, worst = _pays(chosen, config)
    return PaidEstimate(
        model=counter.biller.model,
        prices_version=counter.biller.prices.version,
        chosen=chosen,
        methods=tuple(methods),
        pays_usd=expected,
        pays_at_most_usd=worst,
        budget_usd=config.max_budget_usd,
        month_left_usd=usd_from_pico(month_left),
        uncovered_usd=max(0.0, expected - usd_from_pico(budget)),
        coverage=_coverage(config, chosen, budget, expected, worst),
        notes=_notes(config),
    )


class _Counter:
    """Which requests each method makes."""

    def __init__(self, preflight: Preflight, biller: Biller) -> None:
        self.biller, self._config = biller, preflight.config
        self._train, self._held_out = preflight.prompts.train, preflight.prompts.held_out
        self._uses = prompt_uses(len(self._train), preflight.config)

    def contrast(self) -> Bill:
        return self._references([*self._used(), *self._scored_by_references("contrast", None)])

    def sft(self, level: str | None) -> Bill:
        bill = self._references([] if level is None else self._used())
        if level is None:
            self._guidance(bill)
            self.biller.references(bill, [example.messages for example in self._used()], WRONG_SHARE)
        held_out = self._scored_by_references("sft", level)
        self.biller.references(bill, [example.messages for example in held_out])
        return bill

    def coach(self, level: str) -> Bill:
        needed = self._scored_by_references("coach", level)
        if level == "reference" or self._config.use_sft_mixup:
            needed = [*self._used(), *needed]
        bill = self._references(needed)
        self._level(bill, level)
        return bill

    def probe(self) -> Bill:
        config, bill = self._config, Bill()
        tried = self._held_out[: config.probe_max_prompts]
        levels = LEVELS if config.guidance_level is None else (config.guidance_level,)
        if "examples" in levels:
            self._examples(bill)
        if "lesson" in levels:
            self.biller.lesson(bill, self._longest_prompts(), config.num_rollouts_per_prompt, 1)
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
            answers, steps = config.num_rollouts_per_prompt, config.num_training_steps
            self.biller.lesson(bill, self._longest_prompts(), answers, steps)
        else:
            self._guidance(bill)

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

    def _references(self, examples: Sequence[PromptExample]) -> Bill:
        bill = Bill()
        self.biller.references(bill, [example.messages for example in examples])
        return bill

    def _used(self) -> list[PromptExample]:
        return [self._train[index] for index in self._uses]

    def _scored_by_references(self, method: str, level: str | None) -> list[PromptExample]:
        """The held-out prompts, where the NLL of their references picks the best adapter."""
        wanted, fixed = self._config.primary_metric, method == "coach" and level == "examples"
        return self._held_out if wanted == "reference_nll" or (wanted != "task_score" and not fixed) else []

    def _longest_prompts(self) -> list[tuple[dict[str, str], ...]]:
        """As many prompts as a step has, the longest ones."""
        by_length = sorted(self._used(), key=lambda example: len(str(example.messages)), reverse=True)
        size = self._config.batch_size
        return [example.messages for example in (by_length * (size // len(by_length) + 1))[:size]]


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


def _cost(method: str, level: str | None, bill: Bill) -> MethodCost:
    return MethodCost(
        method=method,
        guidance_level=level,
        calls=max(0, round(bill.requests) - bill.cache_hits),
        cache_hits=bill.cache_hits,
        input_tokens=round(bill.input_tokens),
        output_tokens=round(bill.output_tokens),
        expected_usd=usd_from_pico(bill.expected_pico),
        worst_usd=usd_from_pico(bill.worst_pico),
        worst_pico=bill.worst_pico,
        batch_expected_usd=usd_from_pico(bill.batch_expected_pico) if bill.has_references else None,
        batch_worst_usd=usd_from_pico(bill.batch_worst_pico) if bill.has_references else None,
        largest_call_usd=usd_from_pico(bill.largest_pico),
    )


def _chosen(config: RunConfig, methods: Sequence[MethodCost]) -> MethodCost:
    """The configuration's own method; for `auto` the probe, then probably `contrast`, at worst the dearest."""
    if config.method != "auto":
        level = (config.guidance_level or "examples") if config.method == "coach" else None
        if config.method == "sft" and config.guidance_level == "reference":
            level = "reference"
        return next(found for found in methods if (found.method, found.guidance_level) == (config.method, level))
    probe = methods[0]
    level = config.guidance_level
    open_to_it = [
        found
        for found in methods
        if found.method == "contrast" or (found.method == "coach" and level in (None, found.guidance_level))
    ]
    usual = next(found for found in open_to_it if found.method == "contrast")
    dearest = max(open_to_it, key=lambda found: found.worst_pico)
    return MethodCost(
        method="auto",
        guidance_level=level,
        calls=probe.calls + usual.calls,
        cache_hits=probe.cache_hits + usual.cache_hits,
        input_tokens=probe.input_tokens + usual.input_tokens,
        output_tokens=probe.output_tokens + usual.output_tokens,
        expected_usd=probe.expected_usd + usual.expected_usd,
        worst_usd=usd_from_pico(probe.worst_pico + dearest.worst_pico),
        worst_pico=probe.worst_pico + dearest.worst_pico,
        batch_expected_usd=(probe.batch_expected_usd or probe.expected_usd) + (usual.batch_expected_usd or 0.0),
        batch_worst_usd=max(
            (probe.batch_worst_usd or probe.worst_usd)
            + (found.worst_usd if found.batch_worst_usd is None else found.batch_worst_usd)
            for found in open_to_it
        ),
        largest_call_usd=max(probe.largest_call_usd, *(found.largest_call_usd for found in open_to_it)),
    )


def _pays(chosen: MethodCost, config: RunConfig) -> tuple[float, float]:
    """Expected and worst dollars with the options of this configuration."""
    if config.teacher_batch_api and chosen.batch_expected_usd is not None and chosen.batch_worst_usd is not None:
        return chosen.batch_expected_usd, chosen.batch_worst_usd
    return chosen.expected_usd, chosen.worst_usd


def _coverage(config: RunConfig, chosen: MethodCost, budget_pico: int, expected: float, worst: float) -> str:
    budget = usd_from_pico(budget_pico)
    if config.teacher_cache_only:
        if chosen.calls == 0:
            return "Every reply that can be foreseen is stored, so the run needs no call."
        return f"teacher_cache_only forbids calls, and about {chosen.calls} replies are not stored: the run will fail."
    if chosen.largest_call_usd > budget:
        return (
            f"{format_usd(budget_pico)} may be spent, less than the {chosen.largest_call_usd:.4f} dollars that the "
            "largest single call reserves: not every call can be made."
        )
    if worst <= budget:
        return f"The budget of {format_usd(budget_pico)} covers the run even in the worst case."
    if expected <= budget:
        return (
            f"The budget of {format_usd(budget_pico)} covers what is expected. In the worst case it ends after "
            f"{100 * budget / worst:.0f} % of the calls; the run then stops and keeps its best adapter."
        )
    return (
        f"The budget of {format_usd(budget_pico)} covers about {100 * budget / expected:.0f} % of the calls that are "
        "expected; the run then stops and keeps its best adapter."
    )


def _notes(config: RunConfig) -> tuple[str, ...]:
    notes = [
        "Expected dollars rest on the assumed length of texts; the worst case is what the ledger would reserve: every "
        "request at its longest (answers of rollout_max_tokens tokens of 4 characters), each sent once. Whatever "
        "happens, the budget is not exceeded.",
        "Stored replies were looked up for references. What the teacher says about the student's own answers cannot be "
        "foreseen, so no stored reply is counted for it; an identical run costs nothing.",
    ]
    if config.method == "auto":
        notes.append("auto: the probe, then probably contrast; in the worst case the dearest method it can choose.")
    return tuple(notes)
