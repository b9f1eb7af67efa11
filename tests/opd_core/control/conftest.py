"""Runs that are checked by a test's word alone, a device that somebody else has, and real workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.control.processes import try_lock
from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import Settings
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import Check, check_adapter_paths, config
from tests.opd_core.control.scripted_worker import COMMAND
from tests.opd_core.control.workshop import Workshop


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def store(home: HomePaths) -> RunStore:
    return RunStore(home.database)


@pytest.fixture
def runs(home: HomePaths, store: RunStore, check: Check) -> Runs:
    """Runs whose workers follow orders (and finish at once without any)."""
    roots, supervisor = Roots.of(home.home), Supervisor(home, store, COMMAND)
    return Runs(Settings(home), roots, supervisor=supervisor, preflight=check, comparison_preflight=check_adapter_paths)


@pytest.fixture
def busy(home: HomePaths) -> Iterator[None]:
    """Some other job has the device, so that nothing that is started leaves the queue."""
    lock = try_lock(home.device_lock)
    assert lock is not None
    yield
    os.close(lock)


@pytest.fixture
def compared(runs: Runs, busy: None) -> Callable[..., ComparisonSpec]:
    """A specification for a comparison on the run `opd_source`."""
    runs.start(config(run_id="opd_source"))

    def spec(*adapters: str | None, **changes: Any) -> ComparisonSpec:
        candidates = tuple(Candidate(name=f"c{index}", adapter_path=path) for index, path in enumerate(adapters))
        return ComparisonSpec(run_id="opd_source", candidates=candidates or (Candidate(name="base"),), **changes)

    return spec


@pytest.fixture
def shop(home: HomePaths) -> Iterator[Workshop]:
    """A workshop whose workers are all gone afterwards."""
    workshop = Workshop(home)
    yield workshop
    workshop.close()
