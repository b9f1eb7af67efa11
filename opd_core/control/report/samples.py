"""Answers side by side: of a comparison where there is one, else of the evaluations before training and at the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd_core.control.evidence import RunEvidence
from opd_core.control.report.content import SideBySide
from opd_core.paths import HomePaths
from opd_core.state.jsonl import read_beginning
from opd_core.types import clean_text

MAX_SAMPLES = 5
SAMPLE_CHARACTERS = 2_000
MAX_ROLLOUTS_BYTES = 64 * 1024 * 1024
"""The rollouts of a long run are not read to their end for a few samples."""


def samples(evidence: RunEvidence, home: HomePaths) -> tuple[list[SideBySide], str]:
    """Up to five prompts with the answers, and where they come from; escaped and capped."""
    if evidence.comparison is not None and evidence.comparison.get("samples"):
        found = [_compared(sample) for sample in evidence.comparison["samples"][:MAX_SAMPLES]]
        return found, "Prompts drawn at random from the held-out ones, by the newest comparison."
    best = evidence.row.best_step
    steps = [step for step in (0, best) if step is not None]
    rollouts = home.rollouts(evidence.row.run_id, "val", evidence.config)
    texts = _answers(rollouts, sorted(set(steps)))
    if not texts:
        return [], "No held-out answers are recorded yet."
    shown = [
        SideBySide(prompt, tuple((_name(step, best), text) for step, text in sorted(answers.items())))
        for prompt, answers in list(texts.values())[:MAX_SAMPLES]
    ]
    return shown, "The first held-out prompts, answered greedily before training and by the best adapter."


def _name(step: int, best: int | None) -> str:
    if step == best:
        return f"best adapter, step {step}"
    return f"before training, step {step}" if step == 0 else f"step {step}"


def _compared(sample: dict[str, Any]) -> SideBySide:
    answers = [("reference (file)", sample.get("reference")), ("teacher", sample.get("teacher"))]
    answers += list((sample.get("answers") or {}).items())
    kept = tuple((clean_text(str(name), 80), _shown(text)) for name, text in answers if text is not None)
    return SideBySide(_shown(sample.get("prompt")), kept)


def _shown(text: object) -> str:
    return clean_text(str(text), SAMPLE_CHARACTERS)


def _answers(path: Path, steps: list[int]) -> dict[str, tuple[str, dict[int, str]]]:
    """prompt_id to its prompt and the answers by step, for the first prompts of the file."""
    found: dict[str, tuple[str, dict[int, str]]] = {}
    for record in read_beginning(path, MAX_ROLLOUTS_BYTES):
        step, prompt_id = record.get("step"), str(record.get("prompt_id"))
        if step not in steps or (prompt_id not in found and len(found) >= MAX_SAMPLES):
            continue
        _, answers = found.setdefault(prompt_id, (_shown(record.get("prompt")), {}))
        answers[int(step)] = _shown(record.get("completion"))
        if len(found) == MAX_SAMPLES and all(len(each) == len(steps) for _, each in found.values()):
            break
    return found
