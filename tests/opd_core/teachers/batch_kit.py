"""Batches that a run left behind: how they come about, and who looks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.errors import TeacherUnavailableError
from tests.opd_core.teachers.claude_kit import Kit, ask

SOMEBODY_S = {"custom_id": "somebody's", "params": {"model": "claude-sonnet-5-5", "messages": []}}
BOTH = [ask(), ask("another")]  # what the dying client asks for


def listed(kit: Kit) -> int:
    """How often a page of the list was asked for."""
    return sum(path.startswith("/v1/messages/batches?") for _, path, _, _ in kit.endpoint.requests)


def leave_behind(kit: Kit, *texts: str) -> str:
    """Let a run submit a batch and go away before it has ended; returns its id."""
    kit.endpoint.batch_polls = 10**9
    with pytest.raises(TeacherUnavailableError):
        kit.by_batch([ask(text) for text in texts])
    kit.endpoint.batch_polls = 0
    return list(kit.endpoint.batches)[-1]


def work_off(kit: Kit) -> None:
    """Let the provider end, and bill, every batch that it has."""
    kit.endpoint.batch_polls = 0
    for name in kit.endpoint.batches:
        kit.endpoint.batch_view(name, poll=True)


def other_run(kit: Kit, folder: Path, *dead: str) -> Kit:
    """Another run of the same home, now; the owners in `dead` have let go of their locks."""
    other = Kit(folder / "home", kit.endpoint, run_id="run_2", owner="run_2:1")
    other.time.seconds = kit.time.seconds
    other.dead = set(dead)
    return other
