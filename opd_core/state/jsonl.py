"""Append-only files of one JSON object a line: rollouts and metrics, complete and outside SQLite."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from opd_core.paths import fsync_path
from opd_core.safe_open import open_own

MAX_LINE_BYTES = 8 * 1024 * 1024
"""Of a line that is read for show; a longer one is passed over."""


def finite(value: Any) -> Any:
    """The same data with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def dump_line(record: Mapping[str, Any]) -> str:
    """One record as strict JSON on one line, without the line end."""
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for a torn one (a kill in mid-write, or its writer is at it) and for no object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_beginning(path: Path, max_bytes: int) -> Iterator[dict[str, Any]]:
    """The complete records in the first `max_bytes` of a file, in order; none of one that cannot be read."""
    left = max_bytes
    with suppress(OSError), open_own(path) as file:
        while line := file.readline(min(left, MAX_LINE_BYTES)):
            left -= len(line)
            record = parse_line(line)
            if record is not None:
                yield record


class JsonlFile:
    """An append-only file; the folder and the file are made, private, with the first line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the records and hand them to the system; a torn line left by a kill is ended first.

        Raises:
            OSError: the disk refused (full); nothing of these records stays in the file.
        """
        text = "".join(f"{dump_line(record)}\n" for record in records)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    text = f"\n{text}"
            try:
                _write_all(file, text.encode("utf-8", errors="backslashreplace"))
            except OSError:
                file.truncate(size)
                raise

    def read(self) -> Iterator[dict[str, Any]]:
        """The complete records in order; a torn line (a kill in mid-write) is skipped."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                record = parse_line(line)
                if record is not None:
                    yield record

    def synced_size(self) -> int:
        """Length in bytes, after everything up to there is on the disk."""
        if not self.path.exists():
            return 0
        fsync_path(self.path)
        fsync_path(self.path.parent)  # its name as well
        return self.path.stat().st_size

    def cut(self, size: int) -> int:
        """Drop everything beyond `size` bytes; a shorter file stays as it is. Returns how many bytes it lacks."""
        present = self.path.stat().st_size if self.path.exists() else 0
        if present > size:
            os.truncate(self.path, size)
        return max(0, size - present)


def _write_all(file: IO[bytes], data: bytes) -> None:
    """A raw file may take only a part of what it is given, on a disk that is nearly full."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
