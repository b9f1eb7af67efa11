"""The answer of `estimate_cost`: minutes, memory and dollars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.answers.budgets import dollars
from server.answers.words import duration, number, tidy
from server.schemas.planning import EstimateAnswer, MethodCostEntry, PaidEntry

if TYPE_CHECKING:
    from opd_core.control.estimate.costs import MethodCost, PaidEstimate
    from opd_core.control.estimate.estimating import Estimate


def estimate(found: Estimate, *, names_budget: bool = True) -> EstimateAnswer:
    """What a run would take.

    Args:
        names_budget: a budget was given; a paid run does not start without one.
    """
    paid = _paid(found.paid)
    own = set(EstimateAnswer.model_fields) - {"paid"}
    summary = (
        f"The run would take {duration(60 * found.minutes_expected)}, with {number(found.peak_memory_gb)} GB of memory "
        f"and {number(found.disk_gb)} GB of disk. {found.basis_sentence} "
    )
    if paid is None:
        summary += "It costs $0.00: its teacher is a local model."
        agreed = "if they agree"
    else:
        summary += (
            f"Its teacher {paid.model} is expected to cost {dollars(paid.pays_usd)}, at worst "
            f"{dollars(paid.pays_at_most_usd)}, of a budget of {dollars(paid.budget_usd)}. {paid.coverage}"
        )
        agreed = "if they agree to the cost and have checked the provider's terms themselves"
        if not names_budget:
            summary += " No max_budget_usd was given, so the most a run may have is shown; a start needs one."
            agreed += " and have named a budget (ask how many dollars the run may spend: max_budget_usd)"
    return EstimateAnswer(
        summary=summary,
        next_step=f"Tell the user; {agreed}, call start_distillation with the same arguments and a client_request_id.",
        paid=paid,
        **{name: tidy(getattr(found, name)) for name in own if hasattr(found, name)},
    )


def _paid(found: PaidEstimate | None) -> PaidEntry | None:
    """The paid teacher's part, rounded."""
    if found is None:
        return None
    own = set(PaidEntry.model_fields) - {"chosen", "methods"}
    return PaidEntry(
        **{name: tidy(getattr(found, name)) for name in own},
        chosen=_method_cost(found.chosen),
        methods=[_method_cost(method) for method in found.methods],
    )


def _method_cost(found: MethodCost) -> MethodCostEntry:
    return MethodCostEntry(**{name: tidy(getattr(found, name)) for name in MethodCostEntry.model_fields})


def estimate_facts(answer: EstimateAnswer) -> list[str]:
    """What the run would do and take."""
    return [
        f"- work: {answer.steps:,} steps, {answer.rollouts:,} rollouts, {answer.teacher_calls:,} teacher calls",
        f"- tokens: {answer.completion_tokens:,} by the student, {answer.teacher_tokens:,} read by the teacher",
        f"- time: {duration(60 * answer.minutes_low)} to {duration(60 * answer.minutes_high)} ({answer.basis})",
        f"- memory at the peak {number(answer.peak_memory_gb)} GB, disk {number(answer.disk_gb)} GB",
        f"- prompts: {answer.train_prompts} to train on, {answer.held_out_prompts} held out",
        *paid_lines(answer.paid),
        *(f"- note: {note}" for note in answer.notes),
        *(f"- warning: {warning}" for warning in answer.warnings),
    ]


def paid_lines(paid: PaidEntry | None) -> list[str]:
    """Dollars: of the run itself with the batch option, what else the budget meets, and of the other methods."""
    if paid is None:
        return []
    chosen = paid.chosen
    lines = [
        f"- money: expected {dollars(paid.pays_usd)} (likely, with texts of usual length), at worst "
        f"{dollars(paid.pays_at_most_usd)} (a bound: every request at its most); one call reserves up to "
        f"{dollars(chosen.largest_call_usd)}; {dollars(paid.month_left_usd)} left of this month's budget",
        f"- teacher: about {chosen.calls:,} calls, {chosen.cache_hits:,} answers from the cache, "
        f"{chosen.input_tokens:,} tokens in, {chosen.output_tokens:,} out (prices of version {paid.prices_version})",
    ]
    if chosen.batch_expected_usd is not None:
        lines.append(
            f"- with teacher_batch_api: expected {dollars(chosen.batch_expected_usd)}, at worst "
            f"{dollars(chosen.batch_worst_usd)} if every request is carried out (what is not is asked again at the "
            "full price), but hours of waiting"
        )
    if paid.uncovered_usd:
        lines.append(f"- not covered by the budget: {dollars(paid.uncovered_usd)} of what is expected")
    return lines + [
        f"- {' '.join(filter(None, (method.method, method.guidance_level)))}: expected "
        f"{dollars(method.expected_usd)}, at worst {dollars(method.worst_usd)}"
        for method in paid.methods
    ]
