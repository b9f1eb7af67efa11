"""What people ask can be answered from what the tools say: the whole transcript, with a tiny real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.transcript import STORIES, tell
from tests.server.test_end_to_end import pytestmark

__all__ = ["pytestmark"]


def test_every_request_of_the_transcript_can_be_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(STORIES) >= 20
    assert tell(tmp_path / "home") == [], capsys.readouterr().out
