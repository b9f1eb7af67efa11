"""A last line that a kill cut off, in a file of one JSON object a line: found, ended or cut away."""

from __future__ import annotations

import json
import os
from pathlib import Path


def is_torn(path: Path) -> bool:
    """Whether the file ends in the middle of a line; False when there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) not in (b"", b"\n")
    except OSError:
        return False


def end_line(path: Path) -> None:
    """Give the last line its end."""
    with path.open("ab") as file:
        file.write(b"\n")


def end_or_cut_line(path: Path) -> None:
    """End the last line where only its end is missing, else cut it off."""
    start = _start_of_last_line(path)
    with path.open("rb") as file:
        file.seek(start)
        try:
            json.loads(file.read())
        except ValueError:
            os.truncate(path, start)
            return
    end_line(path)


def _start_of_last_line(path: Path) -> int:
    """Where the text behind the last line end begins, looked for backwards a block at a time."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 65_536)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
    return 0
