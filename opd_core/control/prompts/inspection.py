"""What a prompt file holds before a run is started on it: amounts, split, lengths, problems by line, a few samples.

Unlike a run, which refuses a file with its first bad line, this reads on and lists the problems.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opd_core.control.prompts.scoring_advice import ScoringAdvice, advise_scoring
from opd_core.control.prompts.token_counts import Lengths, TextLengths, count_tokens
from opd_core.errors import PromptFileError
from opd_core.prompt_files import held_out_keys, scan_prompts, text_key
from opd_core.prompt_records import PromptExample
from opd_core.types import clean_text

MAX_PROBLEMS = 20
MAX_SAMPLES = 10
PROBLEM_CHARACTERS = 300
SAMPLE_CHARACTERS = 300


@dataclass(frozen=True)
class LineProblem:
    """A line that a run would refuse, or, with line 0, something about the file as a whole."""

    line: int
    text: str


@dataclass
class PromptFile:
    """One file: counts of its lines, and its distinct prompts in file order."""

    path: Path
    bytes: int
    rows: int = 0
    """Prompts, repetitions included."""
    bad_lines: int = 0
    problems: list[LineProblem] = field(default_factory=list)
    examples: dict[str, PromptExample] = field(default_factory=dict)

    @property
    def format(self) -> str:
        """`jsonl` or `txt`."""
        return self.path.suffix.lower().removeprefix(".")

    @property
    def duplicates(self) -> int:
        """Exact repetitions, which a run drops."""
        return self.rows - len(self.examples)


@dataclass(frozen=True)
class Sample:
    """One prompt with what the file says about its answer: data, escaped and capped."""

    line: int
    side: str
    prompt: str
    completion: str | None
    reference: str | None


@dataclass(frozen=True)
class PromptInspection:
    """What the files of a run hold. Counts after the first group are of distinct prompts.

    `set_aside` prompts are held out but beyond eval_max_samples; `in_both` were left out of training because they are
    also held out; `over_length` is None when the model's context is not known.
    """

    files: tuple[PromptFile, ...]
    train: int
    held_out: int
    set_aside: int
    in_both: int
    with_reference: int
    with_completion: int
    with_system: int
    with_history: int
    held_out_with_reference: int
    characters: Lengths
    tokens: TextLengths
    context_length: int | None
    rollout_max_tokens: int
    over_length: int | None
    over_length_lines: tuple[int, ...]
    advice: ScoringAdvice
    samples: tuple[Sample, ...]


def inspect_prompts(
    paths: Sequence[Path],
    *,
    seed: int,
    eval_max_samples: int,
    rollout_max_tokens: int,
    model: Path | None = None,
    context_length: int | None = None,
    samples: int = 3,
) -> PromptInspection:
    """Read one file (it is split) or a training and a validation file, whose paths were checked.

    Args:
        model: folder whose tokenizer counts the tokens; None: they are estimated from the characters.
        context_length: most tokens of that model's prompt and answer.

    Raises:
        PromptFileError: a file cannot be read at all, or is over a cap.
    """
    files = [_read(path) for path in paths]
    train, held_out, aside, both = _divide(files, seed, eval_max_samples)
    examples = [example for file in files for example in file.examples.values()]
    texts = ["\n".join(turn["content"] for turn in example.messages) for example in examples]
    tokens = count_tokens(texts, model)
    room = math.inf if context_length is None else context_length - rollout_max_tokens
    over = [examples[index].line_number for index in tokens.longer_than(room)]
    kept = {id(example) for example in held_out}
    return PromptInspection(
        files=tuple(files),
        train=len(train),
        held_out=len(held_out),
        set_aside=aside,
        in_both=both,
        with_reference=_with_reference(examples),
        with_completion=sum(example.completion is not None for example in examples),
        with_system=sum(example.messages[0]["role"] == "system" for example in examples),
        with_history=sum(any(turn["role"] == "assistant" for turn in example.messages) for example in examples),
        held_out_with_reference=_with_reference(held_out),
        characters=Lengths.of([len(text) for text in texts]),
        tokens=tokens,
        context_length=context_length,
        rollout_max_tokens=rollout_max_tokens,
        over_length=None if context_length is None else len(over),
        over_length_lines=tuple(over[:MAX_PROBLEMS]),
        advice=advise_scoring(examples),
        samples=tuple(_sample(example, id(example) in kept) for example in _spread(train, held_out, samples)),
    )


def _with_reference(examples: Sequence[PromptExample]) -> int:
    return sum(example.reference is not None for example in examples)


def _read(path: Path) -> PromptFile:
    """Read every line; bad ones are counted, and the first ones kept as problems."""
    found = PromptFile(path, path.stat().st_size if path.is_file() else 0)
    for line_number, item in scan_prompts(path):
        if isinstance(item, PromptFileError):
            found.bad_lines += 1
            if len(found.problems) < MAX_PROBLEMS:
                # the answer names the file once
                reason = str(item).partition(f"line {line_number}")[2].lstrip(":, ") or str(item)
                found.problems.append(LineProblem(line_number, clean_text(reason, PROBLEM_CHARACTERS)))
            continue
        found.rows += 1
        found.examples.setdefault(item.prompt_id, item)
    if not found.examples and not found.bad_lines:
        found.problems.append(LineProblem(0, "The file holds no prompts. Put one prompt on each line."))
    return found


def _divide(
    files: Sequence[PromptFile], seed: int, most: int
) -> tuple[list[PromptExample], list[PromptExample], int, int]:
    """Train and held-out prompts as `run_prompts.load_run_prompts` makes them, how many were set aside or in both."""
    first = list(files[0].examples.values())
    if len(files) == 2:
        held_out = list(files[1].examples.values())
        keys = set(map(text_key, held_out))
        train = [example for example in first if text_key(example) not in keys]
        return train, held_out[:most], max(0, len(held_out) - most), len(first) - len(train)
    by_key = Counter(map(text_key, first))
    if len(by_key) < 2:
        return first, [], 0, 0
    keys_aside = held_out_keys(by_key, seed)
    kept, everything = set(keys_aside[:most]), set(keys_aside)
    held_out = [example for example in first if text_key(example) in kept]
    aside = sum(by_key[key] for key in keys_aside[most:])
    return [example for example in first if text_key(example) not in everything], held_out, aside, 0


def _spread(train: list[PromptExample], held_out: list[PromptExample], most: int) -> list[PromptExample]:
    """Evenly spread over the file, with one held-out prompt among them when there is room for it."""
    if most < 1:
        return []
    chosen = held_out[:1] if most > 1 else []
    wanted = min(most - len(chosen), len(train))
    return [train[index * len(train) // wanted] for index in range(wanted)] + chosen


def _sample(example: PromptExample, is_held_out: bool) -> Sample:
    def shown(text: str | None) -> str | None:
        return None if text is None else clean_text(text, SAMPLE_CHARACTERS)

    return Sample(
        example.line_number,
        "held_out" if is_held_out else "train",
        clean_text(example.prompt, SAMPLE_CHARACTERS),
        shown(example.completion),
        shown(example.reference),
    )
