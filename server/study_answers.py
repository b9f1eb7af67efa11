"""The typed answers about prompt files, logs, diagnoses and reports, and their key facts for the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from opd_core.state.rows import RunRow
from opd_core.types import END_STATES, clean_text
from server import study_schemas as schemas
from server.present import number, status_next_step, tidy
from server.replies import data_bytes, first_that_fit

if TYPE_CHECKING:
    from opd_core.control.diagnosis_model import Diagnosis
    from opd_core.control.evidence import RunEvidence
    from opd_core.control.log_reading import LogLine, LogPart
    from opd_core.control.prompt_inspection import PromptInspection
    from opd_core.control.report import WrittenReport
    from opd_core.control.token_counts import Lengths

SAMPLE_BYTES = 5_000
PROBLEM_BYTES = 4_000
LOG_BYTES = 11_000
ERROR_BYTES = 2_500
TEXT_LOG_BYTES = 3_200
DIAGNOSIS_BYTES = 6_000
SHOWN_SUGGESTIONS = 6


def inspected(found: PromptInspection) -> schemas.InspectAnswer:
    """What the prompt files hold, and whether a run would take them."""
    problems = [
        schemas.ProblemLine(file=tidy(file.path.name, 120), line=problem.line, text=problem.text)
        for file in found.files
        for problem in file.problems
    ]
    samples = [schemas.PromptSample(**vars(sample)) for sample in found.samples]
    bad = sum(file.bad_lines for file in found.files)
    usable = bad == 0 and found.train > 0 and found.held_out > 0
    shown, kept = first_that_fit(problems, PROBLEM_BYTES), first_that_fit(samples, SAMPLE_BYTES)
    left_out = [f"{bad - len(shown)} bad lines"] if bad > len(shown) else []
    left_out += [f"{len(samples) - len(kept)} samples"] if len(kept) < len(samples) else []
    return schemas.InspectAnswer(
        summary=_inspection_summary(found, bad, usable),
        next_step=_inspection_next(found, bad, usable),
        usable=usable,
        files=[_file_entry(file) for file in found.files],
        train_prompts=found.train,
        held_out_prompts=found.held_out,
        set_aside_prompts=found.set_aside,
        in_both_prompts=found.in_both,
        with_reference=found.with_reference,
        with_completion=found.with_completion,
        with_system_prompt=found.with_system,
        with_history=found.with_history,
        held_out_with_reference=found.held_out_with_reference,
        characters=_lengths(found.characters),
        tokens=_lengths(found.tokens.lengths),
        tokens_basis=found.tokens.basis,
        context_length=found.context_length,
        over_length=found.over_length,
        over_length_lines=list(found.over_length_lines),
        suggested_check=found.advice.check,
        suggested_extractor=found.advice.extractor,
        suggestion=found.advice.why,
        problems=shown,
        samples=kept,
        cut=f"Not shown: {' and '.join(left_out)}." if left_out else None,
    )


def _file_entry(file: Any) -> schemas.PromptFileEntry:
    return schemas.PromptFileEntry(
        path=tidy(str(file.path), 300),
        format=file.format,
        bytes=file.bytes,
        rows=file.rows,
        bad_lines=file.bad_lines,
        duplicates=file.duplicates,
    )


def _lengths(found: Lengths) -> schemas.LengthsEntry:
    return schemas.LengthsEntry(p50=found.p50, p95=found.p95, max=found.max)


def _inspection_summary(found: PromptInspection, bad: int, usable: bool) -> str:
    rows, repeated = (sum(getattr(file, name) for file in found.files) for name in ("rows", "duplicates"))
    lengths = found.tokens.lengths
    about = "" if found.tokens.counted else "about "
    sentences = [
        f"The file has {rows:,} prompts" if len(found.files) == 1 else f"The two files have {rows:,} prompts",
        f"{repeated:,} of them repetitions" if repeated else "",
        f"a run would train on {found.train:,} and hold {found.held_out:,} out",
    ]
    text = f"{', '.join(filter(None, sentences))}. A prompt has {about}{lengths.p50:,} tokens in the middle and "
    text += f"{lengths.max:,} at most."
    if found.over_length:
        who = "1 prompt leaves" if found.over_length == 1 else f"{found.over_length:,} prompts leave"
        text += f" In the model's context of {found.context_length:,} tokens, {who} no room for an answer of "
        text += f"{found.rollout_max_tokens:,} tokens."
    if bad:
        text += f" {bad:,} lines are wrong, and a run would refuse the file for the first of them."
    elif not usable:
        text += " A run would refuse it: there must be a prompt to train on and another one to hold out."
    return text


def _inspection_next(found: PromptInspection, bad: int, usable: bool) -> str:
    if bad:
        return "Tell the user which lines to correct and how, then call inspect_prompts again."
    if not usable:
        return "Ask the user for a file with more prompts, then call inspect_prompts again."
    longest = found.tokens.lengths.max
    if found.over_length and found.context_length is not None and longest < found.context_length:
        return (
            f"Call estimate_cost with this file and rollout_max_tokens {found.context_length - longest} or less, so "
            "that prompt and answer fit into the model's context."
        )
    if found.over_length:
        return "Ask the user to shorten the prompts that are too long, or to choose a model with a longer context."
    if found.advice.check is None:
        return "Call estimate_cost with this file; tell the user that no task score will be measured without a check."
    given = f"check {json.dumps(found.advice.check)}"
    if found.advice.extractor is not None:
        given += f" and extractor {json.dumps(found.advice.extractor)}"
    return f"Call estimate_cost with this file, {given}."


def inspection_facts(answer: schemas.InspectAnswer) -> list[str]:
    """Files, references, advice, problems, samples."""
    lines = [
        f"- file {file.path}: {file.format}, {file.bytes:,} bytes, {file.rows:,} prompts, {file.bad_lines:,} bad lines"
        for file in answer.files
    ]
    lines.append(
        f"- references {answer.with_reference:,} ({answer.held_out_with_reference:,} held out), completions "
        f"{answer.with_completion:,}, system prompts {answer.with_system_prompt:,}, several turns "
        f"{answer.with_history:,}"
    )
    lines.append(
        f"- tokens: median {answer.tokens.p50:,}, 95 % below {answer.tokens.p95:,}, longest {answer.tokens.max:,} "
        f"({answer.tokens_basis})"
    )
    if answer.over_length:
        lines.append(
            f"- no room for an answer of rollout_max_tokens: lines {', '.join(map(str, answer.over_length_lines))}"
        )
    if answer.in_both_prompts or answer.set_aside_prompts:
        lines.append(
            f"- left out of training: {answer.in_both_prompts:,} also held out, {answer.set_aside_prompts:,} set aside"
        )
    lines.append(f"- scoring: {answer.suggestion}")
    lines += [f"- problem, {entry.file} line {entry.line}: {entry.text}" for entry in answer.problems]
    lines += [f"- sample (data), line {entry.line}: {_quoted(entry.prompt)}" for entry in answer.samples]
    return lines + ([f"- {answer.cut}"] if answer.cut else [])


def _quoted(text: str) -> str:
    return json.dumps(text[:160], ensure_ascii=False)


def log_read(
    row: RunRow, mode: Literal["summary", "tail", "grep"], part: LogPart, pattern: str | None
) -> schemas.LogAnswer:
    """Lines of a log; the newest are kept when not all fit."""
    lines = _newest_that_fit(part.lines, LOG_BYTES)
    errors = _newest_that_fit(part.errors, ERROR_BYTES)
    notes = []
    if len(lines) < len(part.lines):
        notes.append(f"{len(part.lines) - len(lines)} earlier lines were left out; ask for fewer lines.")
    if part.ends_early:
        notes.append("The search ended before the beginning of the log; call again with next_cursor to go on.")
    if part.timeouts:
        lines_were = "1 line was" if part.timeouts == 1 else f"{part.timeouts:,} lines were"
        notes.append(f"{lines_were} passed over because the pattern took too long there; give a simpler pattern.")
    return schemas.LogAnswer(
        summary=_log_summary(row, mode, part, lines, pattern),
        next_step=_log_next(row, mode, part),
        run_id=row.run_id,
        mode=mode,
        total_lines=part.total_lines,
        total_bytes=part.total_bytes,
        errors=errors,
        lines=lines,
        next_cursor=part.cursor,
        cut=" ".join(notes) or None,
    )


def _newest_that_fit(lines: Sequence[LogLine], limit: int) -> list[schemas.LineEntry]:
    entries = [schemas.LineEntry(line=line.line, text=line.text) for line in reversed(lines)]
    return first_that_fit(entries, limit)[::-1]


def _log_summary(row: RunRow, mode: str, part: LogPart, lines: Sequence[schemas.LineEntry], pattern: str | None) -> str:
    if not part.total_bytes:
        return f"The log of {row.run_id} is empty: its worker has written nothing yet."
    size = f"{part.total_lines:,} lines" if part.total_lines is not None else f"{part.total_bytes:,} bytes"
    if mode == "grep":
        found = "are no such lines"
        if lines:
            count = "is 1 line" if len(lines) == 1 else f"are {len(lines)} lines"
            found = f"{count} with {clean_text(pattern or '', 80)!r}"
        return f"In the log of {row.run_id}, which has {size}, there {found} in the part that was searched."
    if mode == "tail":
        return f"These are {len(lines)} lines of the log of {row.run_id}, which has {size}."
    trouble = f"{len(part.errors)} of the newest tell of trouble" if part.errors else "none tells of trouble"
    return f"The log of {row.run_id} has {size}; {trouble}. The run is {row.state}."


def _log_next(row: RunRow, mode: str, part: LogPart) -> str:
    if part.cursor is not None and mode != "summary":
        return f"Call read_log with run_id {row.run_id} and cursor {part.cursor} for earlier lines, or diagnose_run."
    if part.errors or row.state == "failed":
        return f"Call diagnose_run with run_id {row.run_id} for what to change."
    return f"Call get_status with run_id {row.run_id} for the run's state, or read_log with mode grep and a pattern."


def log_facts(answer: schemas.LogAnswer) -> list[str]:
    """Errors first, then the newest lines that fit into the text."""
    errors = [f"- trouble (data), line {entry.line}: {entry.text}" for entry in answer.errors]
    room, kept = TEXT_LOG_BYTES - data_bytes(errors), list[str]()
    for entry in reversed(answer.lines):
        line = f"- log (data), line {entry.line}: {entry.text}"
        room -= len(line.encode())
        if room < 0:
            kept.append(f"- {len(answer.lines) - len(kept)} earlier lines are in the structured result alone")
            break
        kept.append(line)
    return [*errors, *reversed(kept), *([f"- {answer.cut}"] if answer.cut else [])]


def diagnosed(row: RunRow, found: Diagnosis) -> schemas.DiagnosisAnswer:
    """Verdict, the figures behind it, and what to change."""
    evidence = [clean_text(text, 700) for finding in found.findings for text in finding.evidence]
    kept, room = list[str](), DIAGNOSIS_BYTES
    for text in evidence:
        room -= data_bytes(text)
        if room < 0:
            break
        kept.append(text)
    suggestions = [
        schemas.SuggestionEntry(change=each.change, why=each.why, settings=tidy(each.settings))
        for each in found.suggestions[:SHOWN_SUGGESTIONS]
    ]
    others = [finding.name for finding in found.findings if finding.name != found.verdict]
    more = f" Also found: {', '.join(name.replace('_', ' ') for name in others)}." if others else ""
    hidden = len(found.suggestions) - len(suggestions) + len(evidence) - len(kept)
    return schemas.DiagnosisAnswer(
        summary=f"Run {row.run_id}, {found.verdict.replace('_', ' ')}: {clean_text(found.summary, 1200)}{more}",
        next_step=_diagnosis_next(row, found),
        run_id=row.run_id,
        state=row.state,
        verdict=found.verdict,
        evidence=kept,
        suggestions=suggestions,
        findings=[
            schemas.FindingEntry(name=each.name, severity=each.severity, sentence=clean_text(each.sentence, 700))
            for each in found.findings[:12]
        ],
        cut=f"{hidden} entries were left out; export_report has all of them." if hidden else None,
    )


def _diagnosis_next(row: RunRow, found: Diagnosis) -> str:
    grave = found.findings and found.findings[0].severity
    if found.suggestions and grave in ("stops", "harms"):
        first = found.suggestions[0].change.rstrip(".")
        running = "" if row.state in END_STATES else f" Call stop_distillation with run_id {row.run_id} first."
        return f"Tell the user the verdict and propose the first change: {first}.{running}"
    if found.suggestions:
        return f"Tell the user the verdict and the changes it offers. {status_next_step(row)}"
    return status_next_step(row)


def diagnosis_facts(answer: schemas.DiagnosisAnswer) -> list[str]:
    """Findings, figures, changes with their settings."""
    lines = [f"- {entry.name} ({entry.severity}): {entry.sentence}" for entry in answer.findings]
    lines += [f"- evidence: {text}" for text in answer.evidence]
    for entry in answer.suggestions:
        settings = f" [{json.dumps(entry.settings)}]" if entry.settings else ""
        lines.append(f"- change: {entry.change} Why: {entry.why}{settings}")
    return lines + ([f"- {answer.cut}"] if answer.cut else [])


def reported(evidence: RunEvidence, written: WrittenReport) -> schemas.ReportAnswer:
    """Where the report lies and what it concludes."""
    row = evidence.row
    has_comparison = evidence.comparison is not None and row.state == "completed"
    unfinished = "" if row.state in END_STATES else f" The run is {row.state}, so it shows what there is so far."
    return schemas.ReportAnswer(
        summary=f"The report of run {row.run_id} is written to {written.html.path}, with a Markdown twin beside it."
        f"{unfinished} Its verdict is {written.diagnosis.verdict.replace('_', ' ')}: "
        f"{clean_text(written.diagnosis.summary, 800)}",
        next_step="Tell the user the path of the page; it opens in any browser and loads nothing from elsewhere. "
        + ("Call diagnose_run for what to change." if has_comparison else status_next_step(row)),
        run_id=row.run_id,
        state=row.state,
        verdict=written.diagnosis.verdict,
        html_path=str(written.html.path),
        html_bytes=written.html.bytes,
        html_sha256=written.html.sha256,
        markdown_path=str(written.markdown.path),
        markdown_bytes=written.markdown.bytes,
        markdown_sha256=written.markdown.sha256,
        sections=list(written.sections),
    )


def report_facts(answer: schemas.ReportAnswer) -> list[str]:
    """Files and sections."""
    return [
        f"- page: {answer.html_path} ({number(answer.html_bytes / 1000)} kB, sha256 {answer.html_sha256})",
        f"- Markdown: {answer.markdown_path} ({number(answer.markdown_bytes / 1000)} kB)",
        f"- sections: {', '.join(answer.sections)}",
    ]
