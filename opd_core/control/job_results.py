"""What a finished comparison or probe wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opd_core.errors import StateError
from opd_core.safe_open import open_own
from opd_core.state.rows import RunRow
from opd_core.types import JobKind

MAX_RESULT_BYTES = 64_000_000


def read_result(row: RunRow, kind: JobKind) -> dict[str, Any]:
    """The result of a completed job of this kind.

    Raises:
        StateError: it is of another kind, has not completed, or its file cannot be read.
    """
    if row.kind != kind or row.state != "completed" or row.result_path is None:
        raise StateError(f"{row.run_id} is a {row.kind} in state {row.state}; only a completed {kind} has a result.")
    try:
        with open_own(Path(row.result_path), max_bytes=MAX_RESULT_BYTES) as file:
            result: dict[str, Any] = json.loads(file.read())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StateError(f"The result of {row.run_id} cannot be read ({reason}). Start it again.") from error
    return result
