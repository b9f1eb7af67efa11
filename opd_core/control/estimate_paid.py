"""What a run would pay its teacher, for its own method and for the others: calls, tokens, dollars, and the budget.

The worst case bounds the sum of what the ledger would reserve: every request at its most, each sent once. Where no
answer of the student is sent (references), it is that sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opd_core.config import RunConfig
from opd_core.control.answer_bytes import UNKNOWN_TOKEN_BYTES, most_bytes_per_token
from opd_core.control.estimate_words import coverage_sentence, paid_notes
from opd_core.control.method_calls import LEVELS, MethodCalls
from opd_core.control.preflight import Preflight
from opd_core.control.preflight_paid import month_ledger
from opd_core.control.teacher_bill import Bill, Biller
from opd_core.money.amounts import pico_from_usd, usd_from_pico
from opd_core.settings import Settings


@dataclass(frozen=True)
class MethodCost:
    """The teacher's price of one method; "probe" is `auto`'s first phase, and `start_probe`'s whole job.

    `calls` are those to the provider, `cache_hits` requests that a stored reply answers. `batch_*`: with
    teacher_batch_api, when every entry of a batch is carried out; `None` where no request can wait for a batch. An
    entry that is not carried out is asked for again at the full price, so `worst_usd` is the bound then too.
    `usual_call_pico` is what the largest call holds when texts are of usual length; `sends_answers`: the student's own
    answers are sent, whose length is not known before.
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
    usual_call_pico: int = 0
    sends_answers: bool = False


@dataclass(frozen=True)
class PaidEstimate:
    """What the teacher would cost. `chosen` is the configuration's own method; `methods` are all, for comparison.

    `pays_usd` is what the chosen method is expected to cost, with batches when the configuration uses them;
    `pays_at_most_usd` is its worst case, which batches do not lower.
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
    token_bytes = most_bytes_per_token(preflight.base.path)
    biller = Biller(config, settings, completion_tokens, token_bytes or UNKNOWN_TOKEN_BYTES)
    counter = MethodCalls(preflight, biller)
    methods = [_cost("probe", config.guidance_level, counter.probe())]
    methods += [_cost("coach", level, counter.coach(level)) for level in LEVELS]
    methods.append(_cost("contrast", None, counter.contrast()))
    methods += [_cost("sft", level, counter.sft(level)) for level in (None, "reference")]
    chosen = _chosen(config, methods)
    month_left = month_ledger(settings).month_totals().left_pico
    budget = 0 if config.teacher_cache_only else min(pico_from_usd(config.max_budget_usd), month_left)
    expected, worst = _expected_usd(chosen, config), chosen.worst_usd
    return PaidEstimate(
        model=biller.model,
        prices_version=biller.prices.version,
        chosen=chosen,
        methods=tuple(methods),
        pays_usd=expected,
        pays_at_most_usd=worst,
        budget_usd=config.max_budget_usd,
        month_left_usd=usd_from_pico(month_left),
        uncovered_usd=max(0.0, expected - usd_from_pico(budget)),
        coverage=coverage_sentence(config, chosen, budget, expected),
        notes=paid_notes(config, token_bytes),
    )


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
        batch_expected_usd=usd_from_pico(bill.batch_expected_pico) if bill.can_wait else None,
        batch_worst_usd=usd_from_pico(bill.batch_worst_pico) if bill.can_wait else None,
        largest_call_usd=usd_from_pico(bill.largest_pico),
        usual_call_pico=bill.usual_call_pico,
        sends_answers=bill.sends_answers,
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
        batch_expected_usd=probe.expected_usd + (usual.batch_expected_usd or 0.0),
        batch_worst_usd=probe.worst_usd
        + max(found.worst_usd if found.batch_worst_usd is None else found.batch_worst_usd for found in open_to_it),
        largest_call_usd=max(probe.largest_call_usd, *(found.largest_call_usd for found in open_to_it)),
        usual_call_pico=max(probe.usual_call_pico, usual.usual_call_pico),
        sends_answers=probe.sends_answers or dearest.sends_answers,
    )


def _expected_usd(chosen: MethodCost, config: RunConfig) -> float:
    """Expected dollars with the options of this configuration."""
    if config.teacher_batch_api and chosen.batch_expected_usd is not None:
        return chosen.batch_expected_usd
    return chosen.expected_usd
