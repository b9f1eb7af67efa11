"""The scripted endpoint and a teacher that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoint import Endpoint
from tests.opd_core.teachers.claude_kit import KEY, Kit


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def kit(tmp_path: Path, endpoint: Endpoint) -> Kit:
    return Kit(tmp_path / "home", endpoint)
