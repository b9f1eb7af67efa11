"""How many bytes a student's answer can add to a request: what bounds a reservation before the answer is written.

A request's body is JSON within JSON (`guidance.as_data`, then `message_params.body_bytes`), so a character of an
answer takes 1 to 12 bytes there: a letter 1, a quotation mark 4, a "<" 7, a letter beyond ASCII 6. The bytes of a text
are the sum over its characters, and an answer is at most rollout_max_tokens tokens of the student's vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd_core.errors import ModelFileError
from opd_core.guidance import as_data
from opd_core.tensor_files import read_json_object
from opd_core.tokenizer_files import read_tokenizer

MOST_PER_CHARACTER = 12
UNKNOWN_TOKEN_BYTES = 256 * 7
"""Where a tokenizer cannot be measured: 256 characters (the longest tokens in use have 128), each of 7 bytes."""

_LOST_BYTE = re.compile("[\udc80-\udcff]")
_SPACE_MARK = "▁"


def body_bytes_of_text(text: str) -> int:
    """Bytes that a text adds to a request's body."""
    empty, full = (json.dumps(as_data({"": value})) for value in ("", text))
    return len(full) - len(empty)


def most_bytes_per_token(model: Path) -> int | None:
    """The most bytes of a request's body that one token of a model's tokenizer stands for.

    None when its tokenizer.json is missing or decodes tokens in a way not known here.
    """
    try:
        tokenizer = read_tokenizer(model)
        reading = _reading(read_json_object(model / "tokenizer.json").get("decoder"))
    except ModelFileError:
        return None
    if reading is None:
        return None
    most = 1
    for token in sorted({*tokenizer.vocabulary, *tokenizer.added, *_configured(model)}, key=len, reverse=True):
        if MOST_PER_CHARACTER * (len(token) + 1) <= most:  # no shorter one can have more
            break
        most = max(most, body_bytes_of_text(reading(token)))
    return most


def _reading(decoder: Any) -> Callable[[str], str] | None:
    """What a token becomes at most in a decoded text, by the decoder of the `tokenizers` library; None: not known."""
    if decoder is None:
        return lambda token: f"{token} "  # joined by spaces
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return _byte_level_text
    marks = all(
        step.get("replacement", _SPACE_MARK) == _SPACE_MARK
        if step["type"] == "Metaspace"
        else (step.get("pattern"), step.get("content")) == ({"String": _SPACE_MARK}, " ")
        for step in steps
        if step.get("type") in ("Metaspace", "Replace")
    )
    if steps and marks and kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        return lambda token: token.replace(_SPACE_MARK, " ")
    return None


def _byte_level_text(token: str) -> str:
    """The text of a byte-level token, a replacement character for each byte that is no whole character by itself.

    That is the most such bytes can become: joined with the next token's, some may make one character instead.
    """
    codes = [_BYTE_OF.get(character) for character in token]
    data = bytes(code for code in codes if code is not None) if None not in codes else token.encode("utf-8", "replace")
    return _LOST_BYTE.sub("\ufffd", data.decode("utf-8", "surrogateescape"))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 characters are their own bytes, the others follow from 256 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def _configured(model: Path) -> list[str]:
    """Tokens that tokenizer_config.json adds."""
    try:
        added = read_json_object(model / "tokenizer_config.json").get("added_tokens_decoder")
    except ModelFileError:
        return []
    entries = added.values() if isinstance(added, dict) else ()
    return [str(entry.get("content", "")) for entry in entries if isinstance(entry, dict)]
