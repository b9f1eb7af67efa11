"""One line of a prompt file as a `PromptExample`: which keys, which types, and what the error says."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from opd_core.errors import PromptFileError
from opd_core.matching import STRICT_JSON
from opd_core.types import Message, plain_name

ALLOWED_KEYS = ("prompt", "messages", "completion", "reference")


@dataclass(frozen=True)
class PromptExample:
    """One prompt, with what the file knows about a good answer.

    `messages` ends with a user turn. `completion` is a target text (SFT mix-in), `reference` the right final
    answer. `prompt_id` is made of the turns alone.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    completion: str | None
    reference: str | None
    line_number: int

    @property
    def prompt(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]


def example_from_json(line: str, where: str, line_number: int) -> PromptExample:
    """Parse one JSONL line; `where` ("FILE, line 7") begins every error.

    Raises:
        PromptFileError: not strict JSON, unknown keys, or values of the wrong kind.
    """
    record = _parse(line, where)
    if not isinstance(record, dict):
        raise PromptFileError(f'{where}: must be one JSON object such as {{"prompt": "…"}}, not {_kind(record)}.')
    _refuse_unknown_keys(record, ALLOWED_KEYS, where)
    if ("prompt" in record) == ("messages" in record):
        raise PromptFileError(f'{where}: needs exactly one of the keys "prompt" and "messages".')
    completion = _optional_text(record, "completion", where)
    if "prompt" in record:
        turns = [_turn("user", record["prompt"], "prompt", where)]
    else:
        turns = _turns(record["messages"], where)
    if turns[-1]["role"] == "assistant":
        if completion is not None:
            raise PromptFileError(f'{where}: has both a last assistant turn and "completion". Keep one of them.')
        completion = turns.pop()["content"]
    if not turns or turns[-1]["role"] != "user":
        raise PromptFileError(f'{where}: "messages" must end with a user turn, or a user and an assistant turn.')
    return make_example(turns, completion, _optional_text(record, "reference", where), line_number)


def example_from_text(line: str, where: str, line_number: int) -> PromptExample:
    """One line of a text file, without the spaces around it, as a prompt.

    Raises:
        PromptFileError: it holds a NUL character.
    """
    return make_example([_turn("user", line.strip(), "prompt", where)], None, None, line_number)


def make_example(
    turns: list[Message], completion: str | None, reference: str | None, line_number: int
) -> PromptExample:
    """Put an example together; its id is sha256 of the turns as canonical JSON, 16 hex digits."""
    canonical = json.dumps(turns, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    prompt_id = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return PromptExample(prompt_id, tuple(turns), completion, reference, line_number)


def _parse(line: str, where: str) -> object:
    try:
        return STRICT_JSON.decode(line)
    except json.JSONDecodeError as error:
        raise PromptFileError(f"{where}: not valid JSON at column {error.colno}: {error.msg}.") from None
    except ValueError as error:
        raise PromptFileError(f"{where}: not valid JSON: {error}.") from None
    except RecursionError:
        raise PromptFileError(f"{where}: nested too deeply. A prompt is one flat JSON object.") from None


def _turns(value: object, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else _kind(value)
        raise PromptFileError(f'{where}: "messages" must be a list with at least one turn, not {kind}.')
    turns: list[Message] = []
    for position, turn in enumerate(value, start=1):
        here = f"{where}, message {position}"
        if not isinstance(turn, dict):
            raise PromptFileError(f'{here}: must be {{"role": "…", "content": "…"}}, not {_kind(turn)}.')
        _refuse_unknown_keys(turn, ("role", "content"), here)
        role = turn.get("role")
        if role not in ("user", "assistant") and (role != "system" or position > 1):
            raise PromptFileError(f'{here}: "role" must be user or assistant, or system in the first message.')
        turns.append(_turn(role, turn.get("content"), "content", here))
    return turns


def _turn(role: str, content: object, key: str, where: str) -> Message:
    return {"role": role, "content": _text(content, key, where)}


def _optional_text(record: dict[str, Any], key: str, where: str) -> str | None:
    return None if record.get(key) is None else _text(record[key], key, where)


def _text(value: object, key: str, where: str) -> str:
    """Text with something in it, without NUL (it cuts text short elsewhere) or lone surrogates."""
    if not isinstance(value, str) or not value.strip():
        kind = "empty" if isinstance(value, str) else _kind(value)
        raise PromptFileError(f'{where}: "{key}" must be a text that is not empty; it is {kind}.')
    if "\0" in value:
        raise PromptFileError(f'{where}: "{key}" holds a NUL character. Remove it; is the file binary or UTF-16?')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PromptFileError(f'{where}: "{key}" holds half of a surrogate pair. Write the whole character.')
    return value


def _refuse_unknown_keys(record: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = [key for key in record if key not in allowed]
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0][:60], allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    named = ", ".join(plain_name(key) for key in unknown[:5])
    raise PromptFileError(f"{where}: unknown key {named}; allowed are {', '.join(allowed)}.{hint}")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number")
