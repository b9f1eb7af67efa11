"""The newest rollouts of a run, read from the end of its file; never the whole file in memory."""

from __future__ import annotations

import os
from typing import Any

from opd_core.errors import StateError
from opd_core.paths import HomePaths
from opd_core.safe_open import UnsafeFileError, open_regular, resolved
from opd_core.state.jsonl import parse_line
from opd_core.state.rows import RunRow

LOOK_BACK_BYTES = 4 * 1024 * 1024
"""How much of the file's end is read: one line holds a rollout with its token ids."""


def newest_rollouts(home: HomePaths, row: RunRow, count: int) -> list[dict[str, Any]]:
    """Up to `count` training rollouts, the newest last; fewer when their lines are very long, none before the first.

    Raises:
        StateError: the file cannot be read.
    """
    path = home.rollouts(row.run_id, "train", row.config)
    try:
        with open_regular(resolved(path)) as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - LOOK_BACK_BYTES)
            file.seek(start)
            lines = file.read(LOOK_BACK_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    except (OSError, UnsafeFileError) as error:
        raise StateError(f"The rollouts {path} cannot be read: {error.strerror}.") from None
    if start:
        del lines[0]  # it began before the part that was read
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        if len(found) == count:
            break
        record = parse_line(line)
        if record is not None:
            found.append(record)
    return found[::-1]
