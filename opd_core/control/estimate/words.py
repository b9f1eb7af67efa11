"""What the two figures of a paid estimate mean, in sentences that can be read aloud."""

from __future__ import annotations

from math import floor

from opd_core.config import RunConfig
from opd_core.control.estimate.answer_bytes import UNKNOWN_TOKEN_BYTES
from opd_core.control.estimate.costs import MethodCost
from opd_core.money.amounts import format_usd, pico_from_usd


def coverage_sentence(config: RunConfig, chosen: MethodCost, budget_pico: int, expected_usd: float) -> str:
    """What may be spent will cover, and what it will not.

    A call holds its reservation until its reply is priced, so the last ones need more room than they cost.

    Args:
        budget_pico: the run's budget or what is left of the month's, whichever is less.
    """
    if config.teacher_cache_only:
        if chosen.calls == 0:
            return "Every reply that can be foreseen is stored, so the run needs no call."
        return f"teacher_cache_only forbids calls, and about {chosen.calls} replies are not stored: the run will fail."
    shown = format_usd(budget_pico)
    is_months = budget_pico < pico_from_usd(config.max_budget_usd)
    money = f"The {shown} left of this month's budget" if is_months else f"The budget of {shown}"
    if chosen.worst_pico <= budget_pico:
        return f"{money} covers the run even in the worst case."
    expected_pico, held = pico_from_usd(expected_usd), format_usd(chosen.usual_call_pico)
    if budget_pico < chosen.usual_call_pico:
        return f"{money} is less than the {held} that a usual call holds until it is paid: not every call can be made."
    missing = expected_pico + chosen.usual_call_pico - budget_pico
    if missing <= 0:
        return (
            f"{money} covers what is expected, but not the worst case of {format_usd(chosen.worst_pico)}"
            f"{_worst_clause(chosen)}. Then it covers about {_percent(budget_pico, chosen.worst_pico)} of the calls, "
            "and the run stops and keeps its best adapter."
        )
    covered = _percent(budget_pico - chosen.usual_call_pico, expected_pico)
    return (
        f"{money} covers about {covered} of the calls that are expected; the run then stops and keeps its best adapter."
        f" About {format_usd(missing)} more would cover the rest, the {held} that a usual call holds until it is paid "
        "included."
    )


def paid_notes(config: RunConfig, token_bytes: int | None) -> tuple[str, ...]:
    """What the figures rest on.

    Args:
        token_bytes: see `most_bytes_per_token`.
    """
    measured = f"{token_bytes} bytes each in a request, by its tokenizer"
    assumed = f"{UNKNOWN_TOKEN_BYTES} bytes each in a request, assumed because its tokenizer cannot be measured"
    notes = [
        "Expected dollars are a likely figure: they rest on texts and replies of usual length.",
        "The worst case is a bound and no forecast: what the ledger would reserve if every reply ran to its limit and "
        f"every answer of the student that is sent had {config.rollout_max_tokens} of its longest tokens "
        f"({assumed if token_bytes is None else measured}), each request sent once. A call that may have been billed "
        "without a reply is charged in full and may be sent once more. Whatever happens, the budget is not exceeded.",
        "Stored replies were looked up for references. What the teacher says about the student's own answers cannot be "
        "foreseen, so no stored reply is counted for it; an identical run costs nothing.",
    ]
    if config.teacher_batch_api:
        notes.append(
            "teacher_batch_api: what a batch does not carry out costs nothing there and is asked again at the full "
            "price, so the worst case is that of single calls."
        )
    if config.method == "auto":
        notes.append("auto: the probe, then probably contrast; in the worst case the dearest method it can choose.")
    return tuple(notes)


def _worst_clause(chosen: MethodCost) -> str:
    answers = "every answer used its longest tokens and " if chosen.sends_answers else ""
    return f", if {answers}every reply ran to its limit"


def _percent(part: int, whole: int) -> str:
    """A share below one, rounded down: `37 %`, `less than 1 %`."""
    share = floor(100 * part / whole)
    return f"{share} %" if share else "less than 1 %"
