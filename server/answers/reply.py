"""The text beside each structured result, and the size of both together.

Some hosts give the model the text alone: it holds the summary, the key facts, one a line, and the next step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from mcp_types import CallToolResult, TextContent

from server.schemas.base import Answer, Entry

T = TypeVar("T")
MAX_RESULT_BYTES = 20_000
MAX_DATA_BYTES = 13_000
MAX_TEXT_CHARACTERS = 4_000


def reply(answer: Answer, facts: Iterable[str] = ()) -> CallToolResult:
    """The result of a tool: complete structured content, and a text that stands alone."""
    # a line break in a name or another datum must not make a line that seems to be ours
    body = "\n".join([answer.summary, *(fact.replace("\n", "\\n") for fact in facts)])
    if len(body) > MAX_TEXT_CHARACTERS:
        body = body[:MAX_TEXT_CHARACTERS] + "… (cut; the structured result has the rest)"
    text = f"{body}\nNext: {answer.next_step}"
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=answer.model_dump(mode="json")
    )


def data_bytes(data: Any) -> int:
    """Size of plain data, or of a part of an answer, on the wire."""
    plain = data.model_dump(mode="json") if isinstance(data, Entry) else data
    return len(json.dumps(plain, ensure_ascii=False).encode())


def first_that_fit(entries: Sequence[T], limit_bytes: int, size: Callable[[T], int] = data_bytes) -> list[T]:
    """The longest beginning of a list that fits."""
    kept, room = [], limit_bytes
    for entry in entries:
        room -= size(entry)
        if room < 0:
            break
        kept.append(entry)
    return kept


def thin(lines: Sequence[T], limit_bytes: int, size: Callable[[list[T]], int] = data_bytes) -> list[T]:
    """Evenly fewer lines, first and last kept, until they fit."""
    kept = list(lines)
    while len(kept) > 2 and size(kept) > limit_bytes:
        kept = [*kept[:-1:2], kept[-1]]
    return kept
