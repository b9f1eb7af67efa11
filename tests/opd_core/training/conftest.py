"""Tiny models on disk and in memory, shared by the tests of the heavy half."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.prompt_files import PromptExample
from opd_core.training.lora import LoadedBase, load_base
from opd_core.types import Rollout
from tests.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def base(tiny_folder: Path) -> LoadedBase:
    """The tiny model in memory."""
    return load_base(tiny_folder)


def example(prompt: str, completion: str | None = None, reference: str | None = None) -> PromptExample:
    """A prompt as a prompt file would give it."""
    return PromptExample(
        prompt_id=f"id_{prompt}",
        messages=({"role": "user", "content": prompt},),
        completion=completion,
        reference=reference,
        line_number=1,
    )


def rollout(
    prompt: str, completion: str, completion_ids: tuple[int, ...], prompt_ids: tuple[int, ...] = (1,)
) -> Rollout:
    """An answer of the student to `example(prompt)`; it ended by itself when its last id is 2."""
    return Rollout(
        rollout_id=f"train_{prompt}_{completion_ids[0]}",
        step=1,
        prompt_id=f"id_{prompt}",
        messages=({"role": "user", "content": prompt},),
        prompt_ids=prompt_ids,
        completion=completion,
        completion_ids=completion_ids,
        sampling_logprobs=(-1.0,) * len(completion_ids),
        finish_reason="stop" if completion_ids[-1] == 2 else "length",
        temperature=1.0,
        top_p=1.0,
        max_tokens=64,
        seed=0,
        timestamp="2026-01-01T00:00:00Z",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with opinions, as a folder."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", gain=2.0)
