"""What the demo shows at its end: the table, a few answers, whether the goals were met, and where to go from here."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.table import Table

from server.answers.comparisons import interval
from server.answers.words import number, percent
from server.schemas.jobs import CompareAnswer, ComparisonRow, Figure

MAX_SUCCESS_BEFORE = 0.10
MIN_SUCCESS_AFTER = 0.90
MIN_KL_REDUCTION = 0.80
MIN_TEACHER_SUCCESS = 0.95
SHOWN_SAMPLES = 3


def comparison_table(comparison: CompareAnswer) -> Table:
    """One row a candidate, and the teacher's own score as the ceiling."""
    table = Table(title=f"{comparison.held_out_prompts} held-out prompts, 95 % intervals")
    for column in ("", "success", "reverse KL", "agreement", "tokens", "verdict"):
        table.add_column(column)
    for row in comparison.rows:
        agreement = "" if row.teacher_agreement_pct is None else f"{number(row.teacher_agreement_pct.mean)} %"
        tokens = "" if row.completion_tokens is None else number(row.completion_tokens.mean)
        table.add_row(
            row.name,
            _shown(row.task_score, is_share=True),
            _shown(row.reverse_kl),
            agreement,
            tokens,
            row.verdict or "",
        )
    table.add_row("teacher (ceiling)", _shown(comparison.teacher_task_score, is_share=True), "", "", "", "")
    return table


def _shown(figure: Figure | None, is_share: bool = False) -> str:
    return "" if figure is None else interval(figure, is_share)


def sample_lines(comparison: CompareAnswer) -> list[str]:
    """A few prompts with what each candidate answers."""
    lines = []
    for sample in comparison.samples[:SHOWN_SAMPLES]:
        lines.append(f"Prompt: {_flat(sample.prompt)}")
        lines += [f"  {name}: {_flat(text)}" for name, text in sample.answers.items()]
    return lines


def _flat(text: str) -> str:
    return " ".join(text.split())[:160]


def goals_line(comparison: CompareAnswer) -> str:
    """Whether this run met the demo's goals, each with its figure."""
    before, after = _row(comparison, "base"), _row(comparison, "distilled")
    success_before, success_after = _mean(before.task_score), _mean(after.task_score)
    kl_before, kl_after = _mean(before.reverse_kl), _mean(after.reverse_kl)
    teacher = _mean(comparison.teacher_task_score)
    reduction = None if not kl_before or kl_after is None else 1 - kl_after / kl_before
    goals = [
        ("held-out success before", success_before, "at most", MAX_SUCCESS_BEFORE),
        ("after", success_after, "at least", MIN_SUCCESS_AFTER),
        ("reverse KL down by", reduction, "at least", MIN_KL_REDUCTION),
        ("teacher's own success", teacher, "at least", MIN_TEACHER_SUCCESS),
    ]
    parts, met = [], True
    for name, value, word, goal in goals:
        is_met = value is not None and (value <= goal if word == "at most" else value >= goal)
        met = met and is_met
        parts.append(f"{name} {percent(value)} (goal {word} {percent(goal)}{'' if is_met else ', missed'})")
    return f"Goals {'met' if met else 'not all met'}: {', '.join(parts)}."


def _row(comparison: CompareAnswer, name: str) -> ComparisonRow:
    return next(row for row in comparison.rows if row.name == name)


def _mean(figure: Figure | None) -> float | None:
    return None if figure is None else figure.mean


def closing_words(comparison: CompareAnswer, model: Path, adapter_path: str) -> list[str]:
    """Where the adapter is, how to try it, and what to tell an assistant to do the same with one's own model."""
    prompt = comparison.samples[0].prompt if comparison.samples else "The train leaves at noon."
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(model), "--adapter-path", adapter_path]
    command += ["--prompt", prompt, "--max-tokens", "40"]
    return [
        "",
        f"The adapter is in {adapter_path}",
        "Try it:",
        f"  {shlex.join(command)}",
        "To do the same with your own model, connect this server to your assistant (see README.md) and say:",
        '  "Check the setup and list my models. Then distil the model I name, with the prompts in my file, from '
        "a teacher that gets these instructions: … Tell me what it takes before you start, and whether it helped at "
        'the end."',
    ]
