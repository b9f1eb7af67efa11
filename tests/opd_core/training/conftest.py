"""Tiny models on disk and in memory, shared by the tests of the heavy half."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.prompt_files import PromptExample
from opd_core.training.lora import LoadedBase, load_base
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
