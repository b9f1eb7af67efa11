"""A step's completions cut into parts that fit in memory, keep all lanes busy and share their prompts.

Memory and time of a part follow the ids it reads, padding included: its distinct prompts, each once and as long as the
longest of them, and its completions, as long as theirs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

STRETCH = 2
"""How far the rollouts of one prompt may exceed the ids of a part: cut apart, each part reads the prompt again."""


@dataclass(frozen=True)
class Size:
    """What reading one completion takes.

    Attributes:
        prompt: names its prompt; completions of equal names share it.
        prompt_tokens, completion_tokens: ids of each.
    """

    prompt: object
    prompt_tokens: int
    completion_tokens: int


def micro_batches(sizes: Sequence[Size], tokens_per_batch: int, lanes: int = 1) -> list[list[int]]:
    """Indices of `sizes` in groups of similar length; the longest first, so that a lack of memory shows at once.

    Args:
        tokens_per_batch: ids that one group reads, padding included. A single completion may exceed it, and the
            rollouts of one prompt up to `STRETCH` times.
        lanes: how many groups run at a time; the number of groups is a multiple of it where there is enough to cut.
    """
    by_prompt: dict[object, list[int]] = {}
    for index, size in enumerate(sizes):
        by_prompt.setdefault(size.prompt, []).append(index)
    pieces = math.ceil(lanes / max(1, len(by_prompt)))
    units = [
        unit for members in by_prompt.values() for unit in _cut(members, sizes, STRETCH * tokens_per_batch, pieces)
    ]
    units.sort(key=lambda unit: (-_tokens(unit, sizes), unit[0]))
    needed = len(_merged(units, sizes, tokens_per_batch))
    wanted = math.ceil(needed / lanes) * lanes
    evenly = bisect.bisect_left(
        range(tokens_per_batch), True, key=lambda limit: len(_merged(units, sizes, limit)) <= wanted
    )
    return _merged(units, sizes, evenly)


def _cut(members: Sequence[int], sizes: Sequence[Size], limit: int, pieces: int) -> list[list[int]]:
    """The completions of one prompt in equal groups: as few as the limit allows, but at least `pieces`."""
    ordered = sorted(members, key=lambda index: -sizes[index].completion_tokens)
    for count in range(min(pieces, len(ordered)), len(ordered)):
        each = math.ceil(len(ordered) / count)
        groups = [ordered[start : start + each] for start in range(0, len(ordered), each)]
        if _tokens(groups[0], sizes) <= limit:
            return groups
    return [[index] for index in ordered]


def _merged(units: Sequence[list[int]], sizes: Sequence[Size], limit: int) -> list[list[int]]:
    """Neighbouring units put together as long as they stay within `limit`."""
    groups: list[list[int]] = []
    for unit in units:
        if groups and _tokens([*groups[-1], *unit], sizes) <= limit:
            groups[-1] = [*groups[-1], *unit]
        else:
            groups.append(list(unit))
    return groups


def _tokens(members: Sequence[int], sizes: Sequence[Size]) -> int:
    prompts = {sizes[index].prompt for index in members}
    longest_prompt = max(sizes[index].prompt_tokens for index in members)
    longest_completion = max(sizes[index].completion_tokens for index in members)
    return len(prompts) * longest_prompt + len(members) * longest_completion
