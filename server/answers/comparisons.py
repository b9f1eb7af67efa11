"""The answer of `compare_adapters`: finished with its table, or still at work with how to fetch it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd_core.state.rows import RunRow
from server.answers.budgets import dollars
from server.answers.reply import MAX_DATA_BYTES, data_bytes
from server.answers.sentences import unfinished
from server.answers.words import number, percent, quoted, tidy
from server.schemas.jobs import CompareAnswer, ComparisonRow, ComparisonSample, Figure, JudgedEntry, JudgeEntry

SAMPLE_LIMITS = (400, 200, 100)
TEXT_SAMPLES = 2


def compared(
    row: RunRow, result: Mapping[str, Any] | None, timeout_seconds: float, warnings: str = ""
) -> CompareAnswer:
    """The answer for a comparison job.

    Args:
        result: what its worker wrote, when it has completed.
        warnings: what was found when it was started, if that was in this call.
    """
    warned = [tidy(warnings, 1200)] if warnings else []
    if result is None:
        return _unfinished(row, timeout_seconds).model_copy(update={"warnings": warned})
    adapters = [entry for entry in result["rows"] if entry["adapter_path"] and entry["name"] != result["reference"]]
    better = [tidy(entry["name"], 64) for entry in result["rows"] if entry["verdict"] == "better"]
    winner = f"{' and '.join(better)} is shown to be better" if better else "no candidate is shown to be better"
    more = "" if result["primary_metric"] else " To tell better from worse, call it again with judge true and a budget."
    if len(adapters) > 1:
        more += " To measure two adapters against each other, call it again with those two alone as candidates."
    answer = CompareAnswer(
        status="completed",
        summary=tidy(result["summary"], 1500),
        next_step=f"Tell the user the table; {winner} than {tidy(result['reference'], 64)}. Use a row's adapter_path "
        "with mlx_lm --adapter-path, or call start_distillation with it as student_adapter_path to go on." + more,
        job_id=row.run_id,
        run_id=result["run_id"],
        state=row.state,
        held_out_prompts=result["held_out_prompts"],
        primary_metric=result["primary_metric"],
        reference=tidy(result["reference"], 64),
        teacher_task_score=_figure(result["teacher"]["task_score"]),
        rows=[ComparisonRow(**tidy(entry, 400)) for entry in result["rows"]],
        judge=None if result.get("judge") is None else JudgeEntry(**tidy(result["judge"], 400)),
        timeout_applied_s=timeout_seconds,
        warnings=warned,
    )
    return _with_samples(answer, result["samples"])


def _unfinished(row: RunRow, timeout_seconds: float) -> CompareAnswer:
    run_id = tidy(row.config.get("run_id"))
    return CompareAnswer(**unfinished(row), run_id=run_id, timeout_applied_s=timeout_seconds)


def _figure(entry: Mapping[str, Any] | None) -> Figure | None:
    return None if entry is None else Figure(**tidy(entry))


def _with_samples(answer: CompareAnswer, samples: list[dict[str, Any]]) -> CompareAnswer:
    """As many samples as fit, first shortened, then fewer."""
    room = MAX_DATA_BYTES - data_bytes(answer)
    choices = [(limit, len(samples)) for limit in SAMPLE_LIMITS]
    choices += [(SAMPLE_LIMITS[-1], count) for count in range(len(samples) - 1, -1, -1)]
    for limit, count in choices:
        shown = [ComparisonSample(**tidy(sample, limit)) for sample in samples[:count]]
        if data_bytes([sample.model_dump() for sample in shown]) <= room:
            break
    cut = None
    if (limit, count) != choices[0]:
        cut = f"{count} of {len(samples)} samples are shown, texts cut at {limit} characters; the result file has more."
    return answer.model_copy(update={"samples": shown, "cut": cut})


def comparison_facts(answer: CompareAnswer) -> list[str]:
    """One line a candidate, the teacher's ceiling, and a few answers marked as data."""
    lines = [f"- warning: {warning}" for warning in answer.warnings]
    for row in answer.rows:
        if row.error is not None:
            lines.append(f"- {row.name}: could not be compared: {row.error}")
            continue
        parts = [f"task score {interval(row.task_score, is_share=True)}"] if row.task_score else []
        parts += [f"reverse KL {interval(row.reverse_kl)}"] if row.reverse_kl else []
        parts += [f"agreement {number(row.teacher_agreement_pct.mean)} %"] if row.teacher_agreement_pct else []
        parts += [f"{number(row.completion_tokens.mean)} tokens"] if row.completion_tokens else []
        parts += [f"verdict: {row.verdict}"] if row.verdict else []
        lines.append(f"- {row.name}: {', '.join(parts)}")
        lines += [f"- {row.name}, judged blindly: {_judged(row.judged)}"] if row.judged else []
    if answer.judge is not None:
        lines.append(
            f"- judge {answer.judge.name}: {answer.judge.calls} calls, {dollars(answer.judge.cost_usd)}, "
            f"{answer.judge.cache_hits} answers from the cache{'. ' if answer.judge.note else ''}{answer.judge.note}"
        )
    if answer.teacher_task_score is not None:
        lines.append(f"- the teacher itself: task score {interval(answer.teacher_task_score, is_share=True)}")
    for sample in answer.samples[:TEXT_SAMPLES]:
        lines.append(f"- sample (data), prompt {quoted(sample.prompt)}:")
        lines += [f"    {name}: {quoted(text)}" for name, text in sample.answers.items()]
    return lines + ([f"- {answer.cut}"] if answer.cut else [])


def _judged(entry: JudgedEntry) -> str:
    """`wins 30, ties 5, losses 5; at equal length 81.2 % (66 % to 90 %): better`."""
    rate = entry.length_controlled_win_rate
    counts = f"wins {entry.wins}, ties {entry.ties} ({entry.inconsistent} turned with the order), losses {entry.losses}"
    return counts if rate is None else f"{counts}; at equal length {interval(rate, is_share=True)}: {entry.verdict}"


def interval(figure: Figure, is_share: bool = False) -> str:
    """`12.5 % (3.5 % to 36 %)`."""
    show = percent if is_share else number
    return f"{show(figure.mean)} ({show(figure.low)} to {show(figure.high)})"
