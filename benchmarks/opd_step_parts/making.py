"""Making the works: prompts of an exact length, completions for the check, an adapter to start from, model folders."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.opd_step_parts.works import Prompt
from opd_core.config import TeacherExample
from opd_core.training.tokenization import prompt_ids, teacher_messages
from opd_core.types import Message

WORDS = (
    "river", "garden", "window", "market", "letter", "winter", "kitchen", "morning", "station", "bridge", "paper",
    "island", "music", "doctor", "street", "summer", "village", "table", "teacher", "animal", "forest", "mountain",
    "dinner", "evening", "picture", "school", "machine", "number",
)  # fmt: skip
FILLERS = (" a", " the", ".", " of", "a", "b")
SPREAD_FEW, SPREAD_ALL = 0.1, 0.02
"""Standard deviation of lora_b with named layers, with all: a student so far from its teacher that bfloat16's own
rounding (0.002 nats) is small beside the loss, and no farther."""


def text_of_length(count: Callable[[str], int], length: int, seed: str) -> str:
    """A text of seeded words for which `count` gives exactly `length`."""
    chosen = random.Random(seed)
    text = chosen.choice(WORDS).capitalize()
    while count(longer := f"{text} {chosen.choice(WORDS)}") <= length:
        text = longer
    while (now := count(text)) < length:
        text += next(filler for filler in FILLERS if count(text + filler) == now + 1)
    if count(text) != length:
        raise SystemExit(f"No prompt of {length} tokens: the chat template alone takes about as many.")
    return text


def make_prompt(tokenizer: Any, text: str, system_prompt: str | None, examples: Sequence[dict[str, str]]) -> Prompt:
    """A prompt with the ids of student and teacher, by the one place that makes ids."""
    turns: list[Message] = [{"role": "user", "content": text}]
    shown = [TeacherExample(**item) for item in examples]
    guided = teacher_messages(turns, system_prompt, shown)
    return Prompt(text, prompt_ids(tokenizer, turns), prompt_ids(tokenizer, guided))


def sized_prompt(tokenizer: Any, length: int, seed: str, system_prompt: str | None) -> Prompt:
    """A prompt of `length` tokens as the student reads it, its template included."""

    def count(text: str) -> int:
        return len(prompt_ids(tokenizer, [{"role": "user", "content": text}]))

    return make_prompt(tokenizer, text_of_length(count, length, seed), system_prompt, ())


def context_of_length(tokenizer: Any, length: int) -> str:
    """A system prompt of `length` tokens."""
    return text_of_length(lambda text: len(tokenizer.encode(text, add_special_tokens=False)), length, "context")


def fixed_completions(tokenizer: Any, rows: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Ids of ordinary words, without special tokens."""
    completions = []
    for row in range(rows):
        chosen = random.Random(f"completion {row}")
        text = "".join(f" {chosen.choice(WORDS)}" for _ in range(length))
        completions.append(tuple(tokenizer.encode(text, add_special_tokens=False)[:length]))
    return tuple(completions)


def write_adapter(model: Path, keys: Sequence[str] | None, rank: int, file: Path) -> tuple[str, ...]:
    """An adapter for the linear layers `keys` (None: all) of every block, by mlx-lm's names; gives the keys."""
    generator = np.random.default_rng(0)
    spread = SPREAD_ALL if keys is None else SPREAD_FEW
    arrays: dict[str, Any] = {}
    found: set[str] = set()
    for name, shape in sorted(weight_shapes(model).items()):
        parts = name.removesuffix(".weight").split(".")
        key = ".".join(parts[3:])
        if parts[:2] != ["model", "layers"] or len(shape) != 2 or (keys is not None and key not in keys):
            continue
        found.add(key)
        layer, (wide, narrow) = ".".join(parts), shape
        bound = 1.0 / narrow**0.5
        arrays[f"{layer}.lora_a"] = generator.uniform(-bound, bound, (narrow, rank)).astype(np.float32)
        arrays[f"{layer}.lora_b"] = (spread * generator.standard_normal((rank, wide))).astype(np.float32)
    save_file(arrays, file)
    return tuple(sorted(found))


def weight_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a model folder, by its file's header."""
    with (model / "model.safetensors").open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def second_copy(model: Path) -> Path:
    """The same weights in a folder of their own: a teacher of the student's size that is not the student's base."""
    teacher = model.with_name(f"{model.name}-teacher")
    if not (teacher / "config.json").is_file():
        part = teacher.with_name(f"{teacher.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(model, part)
        part.replace(teacher)
    return teacher
