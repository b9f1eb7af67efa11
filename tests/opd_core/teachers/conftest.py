"""The scripted endpoint and a teacher that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.endpoint import Endpoint, request_data
from tests.opd_core.teachers.claude_kit import KEY, Kit


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with Endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def kit(tmp_path: Path, endpoint: Endpoint) -> Kit:
    return Kit(tmp_path / "home", endpoint)


@pytest.fixture
def echo(endpoint: Endpoint) -> None:
    """The provider gives every prompt back; a request without messages is somebody else's."""

    def answer(params: dict[str, Any]) -> dict[str, Any] | str:
        return {"reference": request_data(params)["conversation"][0]["content"]} if params["messages"] else "{}"

    endpoint.answer = answer
