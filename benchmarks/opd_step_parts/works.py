"""One work: everything that all contestants need to do the very same steps. Standard library only.

It travels as a JSON file. Batch 0 is for the check, with the fixed completions; step k (from 1) takes batch k.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One prompt: its text, and the ids that student and teacher read before the completion."""

    text: str
    ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """One kind of step.

    Attributes:
        model, teacher: model folders; the same path means that the teacher is the student's own base.
        dtype: of the base weights; adapter and optimizer are float32 everywhere.
        lora: safetensors file of the adapter at the start, by mlx-lm's names (`lora_a` (in, r), `lora_b` (r, out)).
        new_tokens: exactly so many in every rollout, whatever is sampled.
        system_prompt, examples: the teacher's own context.
        sft_weight: of the NLL of the teacher's own answers; 0: none.
        fixed: the check's completion ids; row = prompt × rollouts_per_prompt + rollout.
    """

    name: str
    title: str
    device: str
    dtype: str
    threads: int
    model: str
    teacher: str
    lora: str
    lora_rank: int
    lora_scale: float
    lora_keys: tuple[str, ...]
    learning_rate: float
    rollouts_per_prompt: int
    new_tokens: int
    system_prompt: str | None
    examples: tuple[dict[str, str], ...]
    sft_weight: float
    batches: tuple[tuple[Prompt, ...], ...]
    fixed: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Rollouts of a step."""
        return len(self.batches[0]) * self.rollouts_per_prompt

    def repeated(self, batch: int) -> list[Prompt]:
        """The prompt of each row."""
        return [prompt for prompt in self.batches[batch] for _ in range(self.rollouts_per_prompt)]

    def write(self, path: Path) -> None:
        """Write it for the contestants."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_work(path: Path) -> Work:
    """Read what `Work.write` wrote."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    batches = tuple(tuple(_prompt(prompt) for prompt in batch) for batch in data.pop("batches"))
    fixed = tuple(tuple(row) for row in data.pop("fixed"))
    data |= {"lora_keys": tuple(data["lora_keys"]), "examples": tuple(data["examples"])}
    return Work(**data, batches=batches, fixed=fixed)


def _prompt(data: dict[str, Any]) -> Prompt:
    return Prompt(data["text"], tuple(data["ids"]), tuple(data["teacher_ids"]))
