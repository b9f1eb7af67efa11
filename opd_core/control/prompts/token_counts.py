"""How long prompts are in tokens: counted with the model's own tokenizer file, else estimated from the characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from opd_core.errors import ModelFileError

CHARACTERS_PER_TOKEN = 4
"""The usual rule for English text and a large vocabulary; code and other scripts take more tokens."""
MAX_COUNTED = 2_000
"""More prompts are not counted but estimated with the mean of those that were: it is the tail that takes time."""
LONGEST_COUNTED = 50
"""Those with the most characters are always counted, so that the largest count is right."""
MAX_TOKENIZER_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True)
class Lengths:
    """Median, 95th percentile and largest of some lengths; zeros for none."""

    p50: int
    p95: int
    max: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Self:
        """Nearest-rank percentiles."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, 0, 0)
        p50, p95 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))
        return cls(p50, p95, ordered[-1])


@dataclass(frozen=True)
class TextLengths:
    """Tokens of each text; `counted` of them by a tokenizer (0: all are estimates), and a sentence that says so."""

    values: tuple[int, ...]
    counted: int
    basis: str

    @property
    def lengths(self) -> Lengths:
        """Over all texts."""
        return Lengths.of(self.values)

    def longer_than(self, limit: float) -> list[int]:
        """Indexes of the texts with more tokens."""
        return [index for index, tokens in enumerate(self.values) if tokens > limit]


def count_tokens(texts: Sequence[str], model: Path | None) -> TextLengths:
    """Tokens of each text, without the few that a chat template adds.

    Raises:
        ModelFileError: the model's tokenizer.json is missing or cannot be read.
    """
    if model is None:
        return TextLengths(
            tuple(-(-len(text) // CHARACTERS_PER_TOKEN) for text in texts),
            0,
            f"estimated at {CHARACTERS_PER_TOKEN} characters a token; give base_model_path to have them counted",
        )
    tokenizer = _Tokenizer(model)
    chosen = _chosen(texts)
    counted = {index: tokenizer.count(texts[index]) for index in chosen}
    characters = sum(len(texts[index]) for index in chosen)
    rate = sum(counted.values()) / characters if characters else 1 / CHARACTERS_PER_TOKEN
    values = tuple(counted.get(index, round(len(text) * rate)) for index, text in enumerate(texts))
    if len(counted) == len(texts):
        return TextLengths(values, len(counted), "counted with the model's tokenizer, without its chat template")
    return TextLengths(
        values,
        len(counted),
        f"{len(counted):,} of {len(texts):,} prompts counted with the model's tokenizer, the longest among them; the "
        f"others estimated from their characters at the same rate",
    )


def _chosen(texts: Sequence[str]) -> list[int]:
    """Which texts are counted: an even spread, and the longest."""
    if len(texts) <= MAX_COUNTED:
        return list(range(len(texts)))
    spread = {index * len(texts) // MAX_COUNTED for index in range(MAX_COUNTED)}
    longest = sorted(range(len(texts)), key=lambda index: len(texts[index]))[-LONGEST_COUNTED:]
    return sorted(spread | set(longest))


class _Tokenizer:
    """A tokenizer.json through the `tokenizers` library: no model library, no network."""

    def __init__(self, model: Path) -> None:
        from tokenizers import Tokenizer

        file = model / "tokenizer.json"
        try:
            if file.stat().st_size > MAX_TOKENIZER_BYTES:
                raise ValueError(f"larger than {MAX_TOKENIZER_BYTES} bytes")
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for a bad file
            raise ModelFileError(f"{file} cannot be read as a tokenizer ({error}). Copy the model again.") from error

    def count(self, text: str) -> int:
        """Ids of a text alone: one at a time, since the library's own threads do not go with starting workers."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
