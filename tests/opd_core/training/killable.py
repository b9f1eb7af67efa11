"""A run that writes real files and can be killed at any word it says to its observer; and what two runs have in common.

"Killed" is an exception that nobody catches: what the process had in memory is gone, what it wrote stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from opd_core.config import RunConfig, parse_config
from opd_core.state.jsonl import JsonlFile
from opd_core.teachers import build_teacher
from opd_core.teachers.coach import build_coach
from opd_core.training.trainer import TrainingOutcome, train
from opd_core.types import Rollout
from tests.opd_core.training.conftest import example
from tests.opd_core.training.scripted_teacher import ScriptedTeacher

TRAIN = [example(f"train {index}") for index in range(6)]
HELD_OUT = [example(f"held {index}") for index in range(3)]
CHECK = {"kind": "regex", "pattern": "a", "must_match": "search"}
UNLIKE = ("seconds", "per_second", "peak_memory", "latency", "api_calls", "cost", "cache_hits", "timestamp", "path")
"""Parts of the names of figures that may differ between a run and its killed twin."""
PIRATE = {"teacher_system_prompt": "Answer as a pirate would, loudly.", "method": "kl"}
METHODS: dict[str, dict[str, Any]] = {
    "kl": {**PIRATE},
    "kl forward": {**PIRATE, "beta": 0.0, "kl_schedule": "cosine"},
    "kl jsd": {**PIRATE, "beta": 0.5, "kl_schedule": "warmup", "kl_warmup_steps": 3, "lr_warmup_steps": 4},
    "kl mixup": {**PIRATE, "use_sft_mixup": True, "rollout_max_tokens": 30},
    "coach examples": {"method": "coach", "guidance_level": "examples", "use_sft_mixup": True},
    "coach lesson refresh": {"method": "coach", "guidance_level": "lesson", "teacher_refresh_steps": 2},
    "coach critique ema": {"method": "coach", "guidance_level": "critique", "teacher_ema": 0.1, "anchor_weight": 0.1},
    "coach critique overlap": {"method": "coach", "guidance_level": "critique", "overlap_teacher": True},
    "coach reference": {"method": "coach", "guidance_level": "reference", "use_sft_mixup": True},
    "contrast": {"method": "contrast", "sft_warmup_steps": 1, "dpo_round_steps": 2},
    "contrast overlap": {"method": "contrast", "sft_warmup_steps": 0, "overlap_teacher": True, "check": None},
    "sft": {"method": "sft"},
    "sft reference": {"method": "sft", "guidance_level": "reference"},
    "sft batches": {"method": "sft", "guidance_level": "reference", "teacher_batch_api": True},
    "auto": {"method": "auto", "guidance_level": "examples"},
}


class Killed(BaseException):
    """The process is gone."""


class FileObserver:
    """Writes rollouts and metrics as a recorder does; at its n-th call from now the process is killed."""

    def __init__(self, folder: Path, lives: int | None = None) -> None:
        names = ("rollouts/train", "rollouts/val", "metrics/train", "metrics/eval")
        self.files = {name: JsonlFile(folder / f"{name.replace('/', '_')}.jsonl") for name in names}
        self.lives = lives
        self.calls = 0
        self.messages: list[str] = []

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        self._live()

    def rollouts(self, split: Literal["train", "val"], step: int, rollouts: Sequence[Rollout]) -> None:
        self._live()
        self.files[f"rollouts/{split}"].append(rollout.as_record() for rollout in rollouts)
        self._live()

    def train_metrics(self, line: dict[str, object]) -> None:
        self.files["metrics/train"].append([line])
        self._live()

    def eval_metrics(self, line: dict[str, object]) -> None:
        self.files["metrics/eval"].append([line])
        self._live()

    def checkpoint(self, step: int, path: Path, is_best: bool) -> None:
        self._live()

    def log(self, message: str) -> None:
        self.messages.append(message)

    def should_stop(self) -> bool:
        return False

    def positions(self) -> dict[str, int]:
        self._live()
        return {name: file.synced_size() for name, file in self.files.items()}

    def cut_back(self, positions: dict[str, int]) -> None:
        for name, file in self.files.items():
            file.cut(positions.get(name, 0))
        self._live()

    def _live(self) -> None:
        self.calls += 1
        if self.lives is not None and self.calls > self.lives:
            raise Killed


def config_of(model: Path, method: str, **more: Any) -> RunConfig:
    """A short run of one of METHODS."""
    values: dict[str, Any] = {
        "base_model_path": str(model),
        "prompts_path": "train.jsonl",
        "num_rollouts_per_prompt": 2,
        "batch_size": 3,
        "rollout_max_tokens": 8,
        "num_training_steps": 6,
        "learning_rate": 5e-3,
        "lr_warmup_steps": 0,
        "lora_rank": 2,
        "kl_schedule": "constant",
        "eval_every_steps": 3,
        "checkpoint_every_steps": 2,
        "num_guidance_examples": 2,
        "check": CHECK,
    }
    return parse_config({**values, **METHODS[method], **more})


def go(config: RunConfig, folder: Path, lives: int | None = None) -> tuple[TrainingOutcome | None, FileObserver]:
    """One process's part of a run, from what is there; None when it was killed. Random states are as they happen."""
    mx.random.seed(int(np.random.default_rng().integers(2**31)))
    observer = FileObserver(folder, lives)
    has_text = config.method != "kl"
    try:
        outcome = train(
            config, folder / "run", TRAIN, HELD_OUT, build_teacher, observer,
            resume=any((folder / "run").glob("step_*")),
            text_teacher=ScriptedTeacher() if has_text else None, build_coach=build_coach if has_text else None,
        )  # fmt: skip
    except Killed:
        return None, observer
    return outcome, observer


def alike(value: Any) -> Any:
    """A record without what may differ."""
    if isinstance(value, dict):
        return {name: alike(item) for name, item in value.items() if not any(part in name for part in UNLIKE)}
    return [alike(item) for item in value] if isinstance(value, list) else value


def remains(folder: Path) -> dict[str, Any]:
    """What a run leaves behind: every file's lines without what may differ, every tensor file's hash, the memory."""
    found: dict[str, Any] = {path.name: list(map(alike, JsonlFile(path).read())) for path in folder.glob("*.jsonl")}
    found |= tensor_hashes(folder / "run")
    found["litter"] = [path.name for path in (folder / "run").iterdir() if path.name.startswith(".")]
    return found


def tensor_hashes(folder: Path) -> dict[str, str]:
    """Every tensor file of a run's checkpoints by its name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
