"""Cutting a step into parts: nothing twice, nothing left out, within memory, and work for every lane."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.training.micro_batches import STRETCH, Size, micro_batches

SIZES = st.builds(Size, st.integers(0, 5), st.integers(1, 200), st.integers(1, 200))


def tokens(group: list[int], sizes: list[Size]) -> int:
    """Ids that the group reads, written the slow way."""
    prompts = {sizes[index].prompt: sizes[index].prompt_tokens for index in group}
    longest = max(sizes[index].prompt_tokens for index in group)
    return longest * len(prompts) + max(sizes[index].completion_tokens for index in group) * len(group)


@given(st.lists(SIZES, max_size=40), st.integers(1, 2000), st.integers(1, 8))
def test_every_completion_is_in_one_group_and_no_group_is_too_large(sizes: list[Size], limit: int, lanes: int) -> None:
    groups = micro_batches(sizes, limit, lanes)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    for group in groups:
        of_one_prompt = len({sizes[index].prompt for index in group}) == 1
        assert len(group) == 1 or tokens(group, sizes) <= (STRETCH if of_one_prompt else 1) * limit


def test_the_rollouts_of_a_prompt_stay_together() -> None:
    sizes = [Size(row // 4, 512, 64) for row in range(8)]
    assert micro_batches(sizes, 512, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_they_are_cut_apart_when_a_lane_would_have_nothing_to_do() -> None:
    assert micro_batches([Size("it", 128, 64)] * 8, 4096, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("seed", range(20))
def test_two_lanes_are_done_in_little_more_than_half_the_time_of_one(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [Size(row, draw.randint(20, 200), draw.randint(5, 200)) for row in range(12)]
    read = [tokens(group, sizes) for group in micro_batches(sizes, 512, 2)]
    assert len(read) % 2 == 0
    side_by_side = sum(max(pair) for pair in zip(read[::2], read[1::2], strict=True))
    assert side_by_side <= 0.67 * sum(read)


def test_the_longest_come_first() -> None:
    sizes = [Size(row, 1, length) for row, length in enumerate([3, 90, 14, 55, 2, 60, 7, 100, 8])]
    assert micro_batches(sizes, 120)[0] == [7]


@pytest.mark.parametrize("lanes", [1, 2])
def test_nothing_gives_no_groups(lanes: int) -> None:
    assert micro_batches([], 100, lanes) == []
