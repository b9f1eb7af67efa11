"""The answer of `probe_teacher`: what each kind of guidance does for this student, and what to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd_core.state.rows import RunRow
from server.answers.budgets import budget_entry, budget_lines, dollars
from server.answers.comparisons import interval
from server.answers.sentences import unfinished
from server.answers.words import number, percent, tidy
from server.schemas.jobs import ProbeAnswer, ProbeLevel

LEVEL_WORDS = {
    "examples": "a few examples in its context",
    "lesson": "a lesson in words",
    "critique": "a critique of its own answer",
    "reference": "a critique and the right answer",
}


def probed(row: RunRow, result: Mapping[str, Any] | None, timeout_seconds: float) -> ProbeAnswer:
    """The answer for a probe job; `result` is what its worker wrote, when it has completed."""
    if result is None:
        return ProbeAnswer(**unfinished(row), budget=budget_entry(row), timeout_applied_s=timeout_seconds)
    found = tidy(result, 600)
    levels = [ProbeLevel(**{name: level.get(name) for name in ProbeLevel.model_fields}) for level in found["levels"]]
    level = f" and guidance_level {found['guidance_level']}" if found["guidance_level"] else ""
    return ProbeAnswer(
        status="completed",
        summary=_summary(found, levels),
        next_step=f"Tell the user. If they agree call start_distillation with the same arguments, method "
        f"{found['method']}{level}; what the teacher wrote here is kept and is not paid again.",
        **{name: found[name] for name in ("measure", "held_out_prompts", "method", "guidance_level", "reason")},
        cost_usd=found["cost_usd"],
        levels=levels,
        job_id=row.run_id,
        state=row.state,
        budget=budget_entry(row),
        timeout_applied_s=timeout_seconds,
    )


def _summary(found: Mapping[str, Any], levels: list[ProbeLevel]) -> str:
    """A few sentences for the ear."""
    measured = [level for level in levels if level.score_with is not None]
    sentences = []
    if measured and found["measure"] == "task_score":
        alone = percent(measured[0].score_without)
        sentences.append(f"By itself the student scores {alone} on {found['held_out_prompts']} held-out prompts.")
    elif measured:
        sentences.append(f"Answers to {found['held_out_prompts']} held-out prompts were judged blindly.")
    kind = "it scores" if found["measure"] == "task_score" else "its answers win"
    for level in measured:
        words = LEVEL_WORDS.get(level.level, level.level)
        sentences.append(f"With {words} {kind} {percent(level.score_with)}: {level.verdict}.")
    left_out = [level.level for level in levels if level.score_with is None]
    sentences += [f"Not measured: {', '.join(left_out)}."] if left_out else []
    if found["method"] == "coach":
        sentences.append(f"Recommended is method coach with guidance by {found['guidance_level']}.")
    else:
        sentences.append(f"Recommended is method {found['method']}, since no guidance makes this student better.")
    return " ".join([*sentences, f"The probe cost {dollars(found['cost_usd'])}."])


def probe_facts(answer: ProbeAnswer) -> list[str]:
    """One line a level, the reason, and the budget."""
    lines = []
    for level in answer.levels:
        if level.score_with is None or level.gap is None:
            lines.append(f"- {level.level}: {level.note or 'not measured'}")
            continue
        tokens = f", {number(level.completion_tokens_mean)} tokens" if level.completion_tokens_mean is not None else ""
        lines.append(
            f"- {level.level}: without {percent(level.score_without)}, with {percent(level.score_with)}, gap "
            f"{interval(level.gap, is_share=True)} over {level.pairs} prompts: {level.verdict}; "
            f"{dollars(level.cost_usd)}, {level.calls} calls, {level.cache_hits} from the cache{tokens}"
        )
    lines += [f"- why: {answer.reason}"] if answer.reason else []
    return lines + budget_lines(answer.budget)
