"""Requests counted without a model are those that the methods make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from opd_core.config import RunConfig
from opd_core.control.estimate import method_calls
from opd_core.control.estimate.method_calls import example_order, prompt_uses
from opd_core.control.preflight.checking import check
from opd_core.prompt_files import PromptExample
from opd_core.settings import Settings
from opd_core.teachers import coach
from opd_core.training.references import References
from opd_core.training.step import batch_for_step
from tests.model_folders import World


class Asked(References):
    """Takes down which prompts it is asked for."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def texts(self, examples: Sequence[PromptExample]) -> list[str | None]:
        self.prompts += [example.prompt for example in examples]
        return ["yes"] * len(examples)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return World(tmp_path)


def config_of(world: World, **changes: Any) -> RunConfig:
    return world.config(**{"num_training_steps": 20, "batch_size": 4, "rollout_max_tokens": 32, **changes})


def test_prompts_are_counted_as_the_run_draws_them(world: World) -> None:
    config = config_of(world, num_training_steps=17)
    examples = check(config, world.roots, Settings(world.home)).prompts.train
    drawn: dict[int, int] = {}
    for step in range(1, 18):
        for example in batch_for_step(examples, step, config.batch_size, config.seed):
            drawn[examples.index(example)] = drawn.get(examples.index(example), 0) + 1
    assert prompt_uses(len(examples), config) == drawn


def test_examples_are_counted_as_the_coach_chooses_them(world: World) -> None:
    config = config_of(world)
    examples = check(config, world.roots, Settings(world.home)).prompts.train
    asked = Asked()
    coach.choose_examples(config, asked, examples)
    assert [example.prompt for example in example_order(config, examples)[:4]] == asked.prompts
    assert (method_calls.EXAMPLE_ROUNDS, method_calls.MAX_EXAMPLE_CHARACTERS) == (
        coach.EXAMPLE_ROUNDS,
        coach.MAX_EXAMPLE_CHARACTERS,
    )
