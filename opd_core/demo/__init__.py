"""The embedded demo's data: prompts, the teacher's context and the check. Text files only, shipped in the wheel.

The rule the student learns, in one sentence: answer any message with that message as JSON, `{"text": "…"}`. The
teacher is the same model with the rule and a few worked examples in front of the prompt; the student sees the prompt
alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DemoFiles:
    """Prompt files of the demo: what is trained on, and what is only ever measured."""

    train: Path
    held_out: Path


def demo_files() -> DemoFiles:
    """Where the demo's two prompt files lie in the installed package."""
    return DemoFiles(train=_path("train.jsonl"), held_out=_path("held_out.jsonl"))


def demo_teacher() -> tuple[str, list[dict[str, str]]]:
    """What only the teacher sees: (system prompt, example turns as `{"prompt", "completion"}`)."""
    teacher = json.loads(_path("teacher.json").read_text(encoding="utf-8"))
    return teacher["system_prompt"], teacher["examples"]


def demo_check() -> dict[str, Any]:
    """The task score: the whole answer is the JSON form, holding the prompt in all but case and punctuation."""
    return {"kind": "json_equals", "form": {"text": "{prompt}"}}


def _path(name: str) -> Path:
    return Path(str(resources.files("opd_core.demo").joinpath(name)))
