"""What a run would pay its teacher, for its own method and for the others: calls, tokens, dollars, and the budget.

The worst case bounds the sum of what the ledger would reserve: every request at its most, each sent once. Where no
answer of the student is sent (references), it is that sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from opd_core.config import RunConfig
from opd_core.control.estimate.answer_bytes import UNKNOWN_TOKEN_BYTES, most_bytes_per_token
from opd_core.control.estimate.costs import MethodCost, PaidEstimate
from opd_core.control.estimate.method_calls import LEVELS, MethodCalls
from opd_core.control.estimate.teacher_bill import Bill, Biller
from opd_core.control.estimate.words import coverage_sentence, paid_notes
from opd_core.control.preflight.checking import Preflight
from opd_core.control.preflight.paid import month_ledger
from opd_core.money.amounts import pico_from_usd, usd_from_pico
from opd_core.settings import Settings


def estimate_paid(preflight: Preflight, settings: Settings, completion_tokens: float) -> PaidEstimate:
    """Price a checked configuration; looks stored replies up, asks nobody, writes nothing.

    Args:
        completion_tokens: expected length of the student's answers, in its own tokens.

    Raises:
        UnknownPriceError: the teacher's model has no price.
    """
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
    """The configuration's own method."""
    if config.method == "auto":
        return _auto(config.guidance_level, methods)
    level = (config.guidance_level or "examples") if config.method == "coach" else None
    if config.method == "sft" and config.guidance_level == "reference":
        level = "reference"
    return next(found for found in methods if (found.method, found.guidance_level) == (config.method, level))


def _auto(level: str | None, methods: Sequence[MethodCost]) -> MethodCost:
    """The probe, then probably `contrast`; at worst the dearest of those that the probe can choose."""
    probe = methods[0]
    open_to_it = [
        found
        for found in methods
        if found.method == "contrast" or (found.method == "coach" and level in (None, found.guidance_level))
    ]
    usual = next(found for found in open_to_it if found.method == "contrast")
    dearest = max(open_to_it, key=lambda found: found.worst_pico)
    batch_worsts = [found.worst_usd if found.batch_worst_usd is None else found.batch_worst_usd for found in open_to_it]
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
        batch_worst_usd=probe.worst_usd + max(batch_worsts),
        largest_call_usd=max(probe.largest_call_usd, *(found.largest_call_usd for found in open_to_it)),
        usual_call_pico=max(probe.usual_call_pico, usual.usual_call_pico),
        sends_answers=probe.sends_answers or dearest.sends_answers,
    )


def _expected_usd(chosen: MethodCost, config: RunConfig) -> float:
    """Expected dollars with the options of this configuration."""
    if config.teacher_batch_api and chosen.batch_expected_usd is not None:
        return chosen.batch_expected_usd
    return chosen.expected_usd
