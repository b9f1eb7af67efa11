"""The answer of `inspect_prompts`: what the prompt files hold, and whether a run would take them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from server.answers.reply import first_that_fit
from server.answers.words import quoted, tidy
from server.schemas.studies import InspectAnswer, LengthsEntry, ProblemLine, PromptFileEntry, PromptSample

if TYPE_CHECKING:
    from opd_core.control.prompts.inspection import PromptInspection
    from opd_core.control.prompts.token_counts import Lengths


SAMPLE_BYTES = 5_000
PROBLEM_BYTES = 4_000


def inspected(found: PromptInspection) -> InspectAnswer:
    """What the prompt files hold, and whether a run would take them."""
    problems = [
        ProblemLine(file=tidy(file.path.name, 120), line=problem.line, text=problem.text)
        for file in found.files
        for problem in file.problems
    ]
    samples = [PromptSample(**vars(sample)) for sample in found.samples]
    bad = sum(file.bad_lines for file in found.files)
    usable = bad == 0 and found.train > 0 and found.held_out > 0
    shown, kept = first_that_fit(problems, PROBLEM_BYTES), first_that_fit(samples, SAMPLE_BYTES)
    left_out = [f"{bad - len(shown)} bad lines"] if bad > len(shown) else []
    left_out += [f"{len(samples) - len(kept)} samples"] if len(kept) < len(samples) else []
    return InspectAnswer(
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


def _file_entry(file: Any) -> PromptFileEntry:
    return PromptFileEntry(
        path=tidy(str(file.path), 300),
        format=file.format,
        bytes=file.bytes,
        rows=file.rows,
        bad_lines=file.bad_lines,
        duplicates=file.duplicates,
    )


def _lengths(found: Lengths) -> LengthsEntry:
    return LengthsEntry(p50=found.p50, p95=found.p95, max=found.max)


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


def inspection_facts(answer: InspectAnswer) -> list[str]:
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
    lines += [f"- sample (data), line {entry.line}: {quoted(entry.prompt)}" for entry in answer.samples]
    return lines + ([f"- {answer.cut}"] if answer.cut else [])
