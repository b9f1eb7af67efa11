"""Rules about the run itself: it failed, it stands still, it ran out of money, its numbers are no numbers."""

from __future__ import annotations

import math
import statistics

from opd_core.control.diagnosis.finding import Finding, Suggestion
from opd_core.control.diagnosis.values import lowered_rate
from opd_core.control.evidence import RunEvidence
from opd_core.types import LIVE_STATES, clean_text

SILENT_SECONDS = 600.0
"""A worker writes about once a second between long pieces of work; ten minutes is more than any model load or a
single evaluation batch should take."""
SILENT_STEPS = 5
"""Or this many average steps, where steps are slow."""
STARVED_STEPS = 5
"""Steps after which what a step costs is known well enough to project it."""
MESSAGE_CHARACTERS = 600
ROOM = 1.2
"""Allowance on a projected cost: guidance grows with the answers."""


def failed(evidence: RunEvidence) -> Finding | None:
    """The run ended with an error, or its worker died."""
    row = evidence.row
    if row.state not in ("failed", "interrupted"):
        return None
    error = clean_text(row.error_message or "no message was recorded", MESSAGE_CHARACTERS)
    died = row.state == "interrupted"
    sentence = "Its worker process died." if died else f"It failed: {error.rstrip('.')}."
    facts = [f"state {row.state} at step {row.step} of {row.total_steps}", *(() if died else (f"error: {error}",))]
    facts += [f"log (data): {clean_text(line, MESSAGE_CHARACTERS)}" for line in row.last_log_lines[-3:]]
    return Finding("failed", "stops", sentence, tuple(facts), _after_failure(evidence, error, died))


def _after_failure(evidence: RunEvidence, error: str, died: bool) -> tuple[Suggestion, ...]:
    config, again = evidence.config, f"resume_distillation with run_id {evidence.row.run_id}"
    if evidence.row.end_reason == "diverged" or "not finite" in error:
        why = "The loss was no number any more; resuming at the same rate comes to the same place."
        return (_smaller_steps("Start again", why, evidence),)
    text = " ".join([error, *evidence.row.last_log_lines]).lower()
    if died or "memory" in text:
        batch, tokens = int(config.get("batch_size") or 4), int(config.get("rollout_max_tokens") or 512)
        smaller = {"batch_size": max(1, batch // 2), "rollout_max_tokens": max(32, tokens // 2)}
        return (
            Suggestion(f"Call {again}; it goes on from its last checkpoint.", "A killed process loses little.", {}),
            Suggestion(
                f"If it dies again, start a run with batch_size {smaller['batch_size']} and rollout_max_tokens "
                f"{smaller['rollout_max_tokens']}.",
                "A process killed from outside has usually used up the memory; logits grow with both.",
                smaller,
            ),
        )
    return (Suggestion(f"Correct what the error names, then call {again}.", "Nothing that was trained is lost.", {}),)


def not_finite(evidence: RunEvidence) -> Finding | None:
    """Steps were skipped because the loss or its gradient was not a finite number; one is one too many."""
    bad = [line for line in evidence.train if line.get("update_skipped") and _is_unmeasured(line)]
    if not bad or evidence.row.state == "failed":  # then `failed` says it
        return None
    return Finding(
        "not_finite",
        "harms",
        f"{len(bad)} of {len(evidence.train)} recorded steps were skipped because the loss was not a finite number.",
        (f"first at step {bad[0]['step']}, last at step {bad[-1]['step']}; three in a row end a run",),
        (_smaller_steps("Start a run", "Numbers overflow after steps that are too large.", evidence),),
    )


def _smaller_steps(begin: str, why: str, evidence: RunEvidence) -> Suggestion:
    lower = lowered_rate(evidence, 3)
    return Suggestion(
        f"{begin} with learning_rate {lower:g} and gradient_clip_norm 0.5.",
        why,
        {"learning_rate": lower, "gradient_clip_norm": 0.5},
    )


def _is_unmeasured(line: dict[str, object]) -> bool:
    """A figure that is no finite number is recorded as null; a step with nothing to learn from has zeros."""
    return line.get("total_loss", 0.0) is None or line.get("gradient_norm", 0.0) is None


def stalled(evidence: RunEvidence) -> Finding | None:
    """A live worker has written nothing for ten minutes and for five average steps."""
    row = evidence.row
    if row.state not in LIVE_STATES or row.state == "waiting" or row.heartbeat_age_seconds is None:
        return None
    seconds = [value for _, value in evidence.series("step_seconds")[-20:]]
    patience = max(SILENT_SECONDS, SILENT_STEPS * statistics.fmean(seconds) if seconds else 0.0)
    if row.heartbeat_age_seconds <= patience:
        return None
    return Finding(
        "stalled",
        "stops",
        f"The worker lives but has written nothing for {row.heartbeat_age_seconds / 60:.0f} minutes "
        f"({row.phase or 'phase unknown'}).",
        (f"last sign of life {row.heartbeat_age_seconds:.0f} s ago; {patience:.0f} s would still be usual",),
        (
            Suggestion(
                "Look at read_log, then stop_distillation and resume_distillation.",
                "It goes on from its last checkpoint; a machine that swaps or sleeps looks like this.",
                {},
            ),
        ),
    )


def budget_starved(evidence: RunEvidence) -> Finding | None:
    """The budget ended the run before its last step, or at the present cost of a step it will."""
    row, limit = evidence.row, evidence.row.budget_usd
    if limit is None or row.total_steps == 0:
        return None
    used = row.spent_usd + row.reserved_usd
    needed = row.spent_usd / row.step * row.total_steps if row.step >= STARVED_STEPS else None
    ended = row.end_reason == "budget" and row.step < row.total_steps
    if row.frozen_budgets:
        return _frozen(evidence)
    if not ended and (needed is None or needed <= limit or row.step >= row.total_steps):
        return None
    projected = needed if needed is not None else 2 * used
    enough = max(0.01, math.ceil(100 * ROOM * projected) / 100)
    what = "The budget ended the run" if ended else "At its present cost the run will use up its budget"
    facts = [f"${used:.4f} of ${limit:.4f} spent or reserved at step {row.step} of {row.total_steps}"]
    facts += [f"at this rate all steps cost about ${needed:.4f}"] if needed is not None else []
    return Finding(
        "budget_starved",
        "limits",
        f"{what} before its last step: ${row.spent_usd:.2f} of ${limit:.2f} at step {row.step} of {row.total_steps}.",
        tuple(facts),
        (
            Suggestion(
                f"Ask the user whether max_budget_usd {enough:.2f} is right, then resume_distillation with "
                "confirmed true.",
                "It goes on from its last checkpoint, and nothing is paid twice.",
                {"max_budget_usd": enough},
            ),
            Suggestion(
                "Or start a smaller run: num_rollouts_per_prompt 1, teacher_batch_api true.",
                "Fewer rollouts need less guidance, and batch requests cost half.",
                {"num_rollouts_per_prompt": 1, "teacher_batch_api": True},
            ),
        ),
    )


def _frozen(evidence: RunEvidence) -> Finding:
    commands = " and ".join(f"opd unfreeze {scope} --why TEXT" for scope in evidence.row.frozen_budgets)
    return Finding(
        "budget_starved",
        "stops",
        "Paid calls are frozen: one cost more than was reserved for it, and a person must look.",
        (f"${evidence.row.spent_usd:.4f} spent by this run",),
        (
            Suggestion(
                f"Have a person compare the provider's usage page with the ledger and run: {commands}.",
                "No tool can lift a freeze.",
                {},
            ),
        ),
    )


def waiting(evidence: RunEvidence) -> Finding | None:
    """The run waits for something outside, or for its turn."""
    row = evidence.row
    if row.state == "queued":
        sentence = f"It has not begun: it waits in the queue at position {row.queue_position or 1}."
        return Finding("waiting", "note", sentence, (f"created at {row.created_at}",))
    if row.state != "waiting":
        return None
    reason = clean_text(row.waiting_reason or "reason not recorded", MESSAGE_CHARACTERS).rstrip(".")
    until = f" until {row.wake_at}" if row.wake_at else ""
    fewer = max(1, int(evidence.config.get("teacher_max_concurrent") or 5) // 2)
    return Finding(
        "waiting",
        "note",
        f"It waits{until}: {reason}. It goes on by itself.",
        (f"state waiting at step {row.step} of {row.total_steps}",),
        (
            Suggestion(
                f"If it waits for the provider's rate limit often, start a run with teacher_max_concurrent {fewer}.",
                "Fewer calls at one time meet the limit less often.",
                {"teacher_max_concurrent": fewer},
            ),
        ),
    )


END_RULES = (failed, stalled, not_finite, budget_starved, waiting)
