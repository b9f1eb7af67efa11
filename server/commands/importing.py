"""GGUF import in a child process: it needs MLX, and this half of the house has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from opd_core.errors import ModelFileError
from opd_core.types import clean_text

EMBEDDED = "embedded"
"""In place of a file: the demo's own model."""


def import_model(file: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Import `file` (or `EMBEDDED`) into a new model folder.

    Returns:
        What was made: path, architecture, num_parameters, vocab_size, chat_template, eos_token_ids.

    Raises:
        ModelFileError: the importer's own sentence.
    """
    command = [sys.executable, "-P", "-m", "opd_core.training.gguf", file, str(folder.absolute()), "--dtype", dtype]
    child = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ, check=False
    )
    if child.returncode == 0:
        made: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
        return made
    reason = child.stderr.strip().splitlines()
    raise ModelFileError(
        clean_text(reason[-1], 1000) if reason else f"The import ended with status {child.returncode}."
    )
