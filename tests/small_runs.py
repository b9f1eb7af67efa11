"""A small home and a run of small steps, for tests with a real server, a real worker and a tiny real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_tiny_model

NEEDS_INSTALLED_PROJECT = pytest.mark.skipif(
    subprocess.run([sys.executable, "-P", "-c", "import opd_core, server"], cwd="/", capture_output=True).returncode
    != 0,
    reason="the project is not installed in this Python, so no worker can be started",
)


def make_home(home: Path) -> Path:
    """A home with the tiny model and a file of prompts."""
    write_tiny_model(home / "models" / "tiny")
    prompts = [json.dumps({"prompt": f"Say number {number}."}) for number in range(30)]
    (home / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    return home


def configuration(home: Path, **changes: Any) -> dict[str, Any]:
    """A run of a few small steps."""
    return {
        "base_model_path": "tiny",
        "validation_prompts_path": str(home / "prompts.jsonl"),
        "teacher_system_prompt": "Be brief.",
        "num_training_steps": 4,
        "batch_size": 2,
        "num_rollouts_per_prompt": 2,
        "rollout_max_tokens": 8,
        "eval_every_steps": 2,
        "checkpoint_every_steps": 1,
        "lora_rank": 2,
        "kl_schedule": "constant",
        **changes,
    }
