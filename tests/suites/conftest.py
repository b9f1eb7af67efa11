"""The suites are run by `make suites`, which makes what they need; without that they are skipped and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_runs import make_home
from tests.suites.processes import CLIENTS_FOLDER, NODE_FOLDER


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A home with the tiny model and a file of prompts."""
    return make_home(tmp_path / "home")


@pytest.fixture
def node() -> None:
    """Skip without the Node environment."""
    if not (NODE_FOLDER / ".ready").exists():
        pytest.skip("the Node environment is not made; make suites makes it")


@pytest.fixture
def client_python(request: pytest.FixtureRequest) -> Path:
    """The Python of the client environment that the test names; skip without it."""
    folder = CLIENTS_FOLDER / str(request.param)
    if not (folder / ".ready").exists():
        pytest.skip(f"the environment .clients/{request.param} is not made; make suites makes it")
    return folder / "bin" / "python"
