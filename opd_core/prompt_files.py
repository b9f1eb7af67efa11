"""Reading prompt files line by line, with caps, and dividing prompts into train and held-out.

A prompt file is somebody else's data: no line is read into memory beyond its cap, and only regular files are
read. Which folders may be read is decided elsewhere; what one line may say, in `prompt_records`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from opd_core.errors import PromptFileError
from opd_core.prompt_records import PromptExample as PromptExample
from opd_core.prompt_records import example_from_json, example_from_text
from opd_core.safe_open import open_regular
from opd_core.types import clean_text


@dataclass(frozen=True)
class PromptLimits:
    """What a prompt file may hold at most."""

    max_file_bytes: int = 256 * 1024 * 1024
    max_line_bytes: int = 1024 * 1024
    max_lines: int = 1_000_000


DEFAULT_LIMITS = PromptLimits()


@dataclass(frozen=True)
class LoadedPrompts:
    """The distinct prompts of a file, in file order, and how many exact repetitions were dropped."""

    examples: list[PromptExample]
    duplicates_dropped: int


def iter_prompts(path: Path, *, limits: PromptLimits = DEFAULT_LIMITS) -> Iterator[PromptExample]:
    """Yield the file's prompts one by one, repetitions included, in constant memory.

    Formats, by extension: `.jsonl` with one object a line, `{"prompt"}`, `{"messages"}` (a last assistant
    turn is the completion) or `{"prompt", "completion"}`, each with an optional `"reference"`; `.txt` with
    one prompt a line. Blank lines are skipped.

    Raises:
        PromptFileError: missing, not a regular file, of another format, over a cap, or with a bad line.
    """
    for _, found in scan_prompts(path, limits=limits):
        if isinstance(found, PromptFileError):
            raise found
        yield found


def scan_prompts(
    path: Path, *, limits: PromptLimits = DEFAULT_LIMITS
) -> Iterator[tuple[int, PromptExample | PromptFileError]]:
    """As `iter_prompts`, but a bad line is yielded as its error, with its number, and the next line follows.

    Raises:
        PromptFileError: missing, not a regular file, of another format, or over a cap.
    """
    name = clean_text(str(path), 300)
    _refuse_other_formats(path, name)
    parse = example_from_json if path.suffix.lower() == ".jsonl" else example_from_text
    with _open(path, name, limits) as handle:
        for line_number, line in _lines(handle, name, limits):
            where = f"{name}, line {line_number}"
            try:
                text = _decoded(line, where)
                if text.strip():
                    yield line_number, parse(text, where, line_number)
            except PromptFileError as error:
                yield line_number, error


def _decoded(line: bytes, where: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{where}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from None
    if "\0" in text:
        raise PromptFileError(f"{where}: holds a NUL character. Remove it; is the file binary or UTF-16?")
    return text


def load_prompts(path: Path, *, limits: PromptLimits = DEFAULT_LIMITS) -> LoadedPrompts:
    """Read a whole prompt file; a prompt (all its turns) that comes again is dropped and counted.

    Raises:
        PromptFileError: as `iter_prompts`, and when the file holds no prompt.
    """
    distinct: dict[str, PromptExample] = {}
    seen = 0
    for example in iter_prompts(path, limits=limits):
        seen += 1
        distinct.setdefault(example.prompt_id, example)
    if not distinct:
        raise PromptFileError(f"{clean_text(str(path), 300)} holds no prompts. Put one prompt on each line.")
    return LoadedPrompts(list(distinct.values()), seen - len(distinct))


def read_prompts(path: Path, *, limits: PromptLimits = DEFAULT_LIMITS) -> list[PromptExample]:
    """The distinct prompts of `load_prompts`, for callers who do not report the repetitions."""
    return load_prompts(path, limits=limits).examples


def split_prompts(
    examples: Iterable[PromptExample],
    seed: int,
    held_out_fraction: float = 0.2,
    max_held_out: int | None = None,
) -> tuple[list[PromptExample], list[PromptExample]]:
    """Split into (train, held_out) by a seeded hash of each prompt's text; both keep the given order.

    Equal texts (case and spacing aside) fall on the same side whatever their order, and adding prompts moves
    no other across, except from a side that would have been empty. What is held out beyond `max_held_out` is
    set aside, not trained on.

    Raises:
        PromptFileError: fewer than two different prompts.
    """
    listed = list(examples)
    aside = held_out_keys(map(text_key, listed), seed, held_out_fraction)
    kept, everything = set(aside[:max_held_out]), set(aside)
    train = [example for example in listed if text_key(example) not in everything]
    return train, [example for example in listed if text_key(example) in kept]


def held_out_keys(keys: Iterable[str], seed: int, held_out_fraction: float = 0.2) -> list[str]:
    """Those of the `text_key`s that `split_prompts` holds out, in the order in which `max_held_out` keeps them.

    Raises:
        PromptFileError: fewer than two different keys.
    """
    draws = {key: _draw(key, seed) for key in keys}
    if len(draws) < 2:
        raise PromptFileError(f"Training and held-out prompts need at least 2 different prompts; found {len(draws)}.")
    ranked = sorted(draws, key=lambda key: (draws[key], key))
    held_out_count = sum(draws[key] < held_out_fraction for key in ranked)
    return ranked[: min(max(held_out_count, 1), len(ranked) - 1)]


def check_disjoint(
    train: Iterable[PromptExample], held_out: Iterable[PromptExample]
) -> tuple[list[PromptExample], int]:
    """Remove from `train` every prompt whose text also stands in `held_out`; return (train, removed count).

    Raises:
        PromptFileError: nothing is left to train on.
    """
    listed = list(train)
    held_out_keys = set(map(text_key, held_out))
    kept = [example for example in listed if text_key(example) not in held_out_keys]
    if not kept:
        raise PromptFileError(
            f"All {len(listed)} training prompts also stand in the validation prompts, so none is left "
            "to train on. Use different files, or give only one and let it be split."
        )
    return kept, len(listed) - len(kept)


def text_key(example: PromptExample) -> str:
    """What makes two prompts the same on a side: the last user turn, case and spacing aside."""
    return " ".join(example.prompt.casefold().split())


def _draw(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _refuse_other_formats(path: Path, name: str) -> None:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".txt"):
        return
    if suffix == ".json":
        hint = "Write one JSON object on each line and name the file .jsonl."
    else:
        hint = "A prompt file is a .jsonl (one JSON object a line) or a .txt (one prompt a line)."
    raise PromptFileError(f"{name} does not end in .jsonl or .txt. {hint}")


def _open(path: Path, name: str, limits: PromptLimits) -> IO[bytes]:
    """Open the file safely, or say what is wrong with it."""
    try:
        return open_regular(path, max_bytes=limits.max_file_bytes, one_name=True)
    except FileNotFoundError:
        raise PromptFileError(f"{name} does not exist. Check the path of the prompt file.") from None
    except OSError as error:
        raise PromptFileError(
            f"{name} cannot be opened: {error.strerror}. Name one readable .jsonl or .txt file."
        ) from None


def _lines(handle: IO[bytes], name: str, limits: PromptLimits) -> Iterator[tuple[int, bytes]]:
    """Number the lines from 1, without line ends and byte-order mark; hold one capped line at a time."""
    line_number, total_bytes = 0, 0
    while line := handle.readline(limits.max_line_bytes + 1):
        line_number += 1
        total_bytes += len(line)
        if line_number > limits.max_lines:
            raise _too_large(name, f"{limits.max_lines} lines")
        if total_bytes > limits.max_file_bytes:  # it grew after it was opened
            raise _too_large(name, f"{limits.max_file_bytes} bytes")
        if len(line) > limits.max_line_bytes:
            raise PromptFileError(
                f"{name}, line {line_number}: longer than {limits.max_line_bytes} bytes. Shorten this prompt."
            )
        yield line_number, (line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line).rstrip(b"\r\n")


def _too_large(name: str, allowed: str) -> PromptFileError:
    return PromptFileError(f"{name} has more than the {allowed} that a prompt file may have. Split the file.")
