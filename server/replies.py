"""The text beside each structured result, and the size of both together.

Some hosts give the model the text alone: it holds the summary, the key facts, one a line, and the next step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from mcp_types import CallToolResult, TextContent

from server.budgets import dollars, exact_dollars
from server.present import duration, moment, number, percent
from server.schemas import (
    Answer,
    BudgetEntry,
    Entry,
    EstimateAnswer,
    EvalEntry,
    MetricsAnswer,
    PaidEntry,
    RunsAnswer,
    RunStatus,
    Scalar,
    SetupAnswer,
)

T = TypeVar("T", bound=Entry)
MAX_RESULT_BYTES = 20_000
MAX_DATA_BYTES = 13_000
MAX_TEXT_CHARACTERS = 4_000
MAIN_METRICS = {
    "train": ("kl_loss", "kl_divergence_mean", "student_entropy", "teacher_alignment_pct", "tokens_per_second"),
    "eval": ("reverse_kl", "task_score", "teacher_agreement_pct", "completion_tokens_mean"),
}


def reply(answer: Answer, facts: Iterable[str] = ()) -> CallToolResult:
    """The result of a tool: complete structured content, and a text that stands alone."""
    # a line break in a name or another datum must not make a line that seems to be ours
    body = "\n".join([answer.summary, *(fact.replace("\n", "\\n") for fact in facts)])
    if len(body) > MAX_TEXT_CHARACTERS:
        body = body[:MAX_TEXT_CHARACTERS] + "… (cut; the structured result has the rest)"
    text = f"{body}\nNext: {answer.next_step}"
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=answer.model_dump(mode="json")
    )


def data_bytes(data: Any) -> int:
    """Size of data on the wire."""
    return len(json.dumps(data, ensure_ascii=False).encode())


def first_that_fit(entries: Sequence[T], limit_bytes: int) -> list[T]:
    """The longest beginning of a list that fits."""
    kept, room = [], limit_bytes
    for entry in entries:
        room -= data_bytes(entry.model_dump(mode="json"))
        if room < 0:
            break
        kept.append(entry)
    return kept


def thin(lines: Sequence[dict[str, Scalar]], limit_bytes: int = MAX_DATA_BYTES) -> list[dict[str, Scalar]]:
    """Evenly fewer lines, first and last kept, until they fit."""
    kept = list(lines)
    while len(kept) > 2 and data_bytes(kept) > limit_bytes:
        kept = [*kept[:-1:2], kept[-1]]
    return kept


def setup_facts(answer: SetupAnswer) -> list[str]:
    """Problems first, each with its fix, then the facts."""
    problems = [f"- Problem: {problem.what} Fix: {problem.fix}" for problem in answer.problems]
    return problems + [f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in answer.facts.items()]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)


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


def status_facts(answer: RunStatus) -> list[str]:
    """State, figures, held-out evaluations, and where things lie."""
    now = answer.metrics
    lines = [f"- state: {answer.state}, step {now.step} of {now.total_steps}"]
    figures = {
        "KL loss": now.kl_loss,
        "reverse KL of the rollouts": now.kl_divergence_mean,
        "student entropy": now.student_entropy,
        "teacher agreement in percent": now.teacher_alignment_pct,
        "tokens per second": now.tokens_per_second,
    }
    known = [f"{name} {number(value)}" for name, value in figures.items() if value is not None]
    lines += ["- training: " + ", ".join(known)] if known else []
    if now.teacher_api_calls is not None and answer.budget is not None:
        lines.append(f"- teacher: {now.teacher_api_calls:,} calls, {now.teacher_cache_hits or 0:,} from the cache")
    lines += _evaluation_lines(answer)
    if answer.state == "waiting" and answer.wake_at:
        lines.append(f"- waiting until {moment(answer.wake_at)} for: {answer.waiting_reason or 'reason not recorded'}")
    lines += budget_lines(answer.budget, answer.budget_warning)
    lines += ["- budget: a call was refused for lack of it"] if answer.budget_exceeded else []
    lines += [f"- error: {answer.error_message}"] if answer.error_message else []
    lines += [f"- log (data): {line}" for line in answer.log_tail]
    lines += [f"- checkpoint: {answer.checkpoint_path}"] if answer.checkpoint_path else []
    lines += [f"- adapter, for mlx_lm --adapter-path: {answer.final_adapter_path}"] if answer.final_adapter_path else []
    return lines


def budget_lines(budget: BudgetEntry | None, is_near_limit: bool = False) -> list[str]:
    """Spent, reserved and left, with a warning at four fifths."""
    if budget is None:
        return []
    lines = [
        f"- budget: {dollars(budget.spent_usd)} spent and {dollars(budget.reserved_usd)} reserved of "
        f"{exact_dollars(budget.limit_usd)} ({number(budget.used_pct)} %)"
    ]
    lines += ["- warning: four fifths of the budget are used"] if is_near_limit else []
    return lines + (
        ["- paid calls are frozen: only a person can lift that, with opd unfreeze"] if budget.frozen else []
    )


def _evaluation_lines(answer: RunStatus) -> list[str]:
    """Before training, latest and best; evaluations that are the same one share a line."""
    names: dict[str, list[str]] = {}
    named = {"before training": answer.baseline, "latest": answer.latest_eval, "best": answer.best_eval}
    for name, entry in named.items():
        if entry is not None:
            names.setdefault(eval_line(entry), []).append(name)
    return [f"- held-out, {', '.join(shared)}: {line}" for line, shared in names.items()]


def eval_line(entry: EvalEntry) -> str:
    """One evaluation in words."""
    parts = [f"step {entry.step}"] if entry.step is not None else []
    parts += [f"reverse KL {number(entry.reverse_kl)}"] if entry.reverse_kl is not None else []
    parts += [f"task score {percent(entry.task_score)}"] if entry.task_score is not None else []
    agreement = entry.teacher_agreement_pct
    parts += [f"agreement {number(agreement)} %"] if agreement is not None else []
    parts += [f"{entry.held_out_prompts} prompts"] if entry.held_out_prompts is not None else []
    return ", ".join(parts)


def metrics_facts(answer: MetricsAnswer) -> list[str]:
    """A short table: step and the main figures of at most twelve lines."""
    lines = answer.metrics_history
    stride = max(1, -(-len(lines) // 12))
    shown = [*lines[:-1:stride], lines[-1]] if lines else []
    table = [
        f"- step {line.get('step')}: "
        + ", ".join(f"{name} {line[name]}" for name in MAIN_METRICS[answer.series] if line.get(name) is not None)
        for line in shown
    ]
    return [*table, *([answer.cut] if answer.cut else [])]


def runs_facts(answer: RunsAnswer) -> list[str]:
    """One line a run."""
    lines = []
    for run in answer.runs:
        best = f", best reverse KL {number(run.best_reverse_kl)}" if run.best_reverse_kl is not None else ""
        best += f", best task score {percent(run.best_task_score)}" if run.best_task_score is not None else ""
        step = f", step {run.step} of {run.total_steps}" if run.total_steps else ""
        base = f", base {PurePath(run.base_model).name[:60]}" if run.base_model and run.kind == "distillation" else ""
        lines.append(f"- {run.run_id}: {run.kind}, {run.state}{step}{base}{best}")
    return lines
