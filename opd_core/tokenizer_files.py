"""Whether two model folders have the same tokenizer, by what their tokenizer.json means, not by its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.errors import ModelFileError
from opd_core.tensor_files import json_dict, json_int, logit_width, model_tensors, read_json_object
from opd_core.types import plain_name


@dataclass(frozen=True)
class Tokenizer:
    """What gives text its ids: token to id, merges in order, added tokens to id."""

    vocabulary: dict[str, int]
    merges: tuple[str, ...]
    added: dict[str, int]


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a model folder's tokenizer.json.

    Raises:
        ModelFileError: missing, or not in the form of the `tokenizers` library.
    """
    file = path / "tokenizer.json"
    data = read_json_object(file)
    model = json_dict(data, "model")
    try:
        return Tokenizer(
            vocabulary=_vocabulary(model["vocab"]),
            merges=tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or ()),
            added={str(item["content"]): int(item["id"]) for item in data.get("added_tokens") or ()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{file} is not a tokenizer file this program can read. Copy it again.") from error


def same_tokenizer(first: Path, second: Path) -> str | None:
    """Why two model folders cannot be compared token by token, or `None` when they can.

    Logit rows of different widths do not matter (one family may pad its vocabulary differently), as long as each has
    a place for every id. The ids that texts get are compared by the worker's probes.

    Raises:
        ModelFileError: see `read_tokenizer`.
    """
    one, other = read_tokenizer(first), read_tokenizer(second)
    if one.vocabulary != other.vocabulary:
        return f"their vocabularies differ ({_first_difference(one.vocabulary, other.vocabulary)})"
    if one.merges != other.merges:
        return f"their merge rules differ ({len(one.merges)} and {len(other.merges)} rules)"
    if one.added != other.added:
        return f"their added tokens differ ({_first_difference(one.added, other.added)})"
    ids = 1 + max((one.vocabulary | one.added).values(), default=0)
    narrow = [(path.name, width) for path in (first, second) if (width := _width(path)) < ids]
    return f"{narrow[0][0]} has {narrow[0][1]} logits for a tokenizer of {ids} ids" if narrow else None


def _vocabulary(vocab: Any) -> dict[str, int]:
    """Token to id; unigram files list [token, score] pairs in id order instead."""
    if isinstance(vocab, dict):
        return {str(token): int(number) for token, number in vocab.items()}
    return {str(pair[0]): number for number, pair in enumerate(vocab)}


def _first_difference(one: dict[str, int], other: dict[str, int]) -> str:
    """The sizes, and the token of lowest id that is not the same in both."""
    odd = [token for token in one.keys() | other.keys() if one.get(token) != other.get(token)]
    token = min(odd, key=lambda token: (min(one.get(token, 1 << 60), other.get(token, 1 << 60)), token))
    ids = " and ".join(f"id {table[token]}" if token in table else "not there" for table in (one, other))
    return f"{len(one)} and {len(other)} tokens; {plain_name(token)} is {ids}"


def _width(path: Path) -> int:
    """Width of a logit row, from the weights, else from config.json."""
    return logit_width(model_tensors(path).tensors) or json_int(read_json_object(path / "config.json"), "vocab_size")
