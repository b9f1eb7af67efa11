"""What a worker hands to its paid teacher, and what it says of that."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest

from opd_core.config import parse_config
from opd_core.control.processes import try_lock
from opd_core.money.pricing import PriceTable
from opd_core.paths import HomePaths
from opd_core.state.recorder import RunRecorder
from opd_core.state.store import RunStore
from opd_core.teachers import hired
from opd_core.worker import jobs
from opd_core.worker.jobs import JobContext, _hire, _tell_retirement


def test_a_worker_may_act_for_dead_workers_only(home: HomePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, Any] = {}

    def hire(*_: object, **options: Any) -> SimpleNamespace:
        got.update(options)
        return SimpleNamespace(name="somebody", check=lambda: None)

    monkeypatch.setattr(hired, "hire_claude", hire)
    home.prepare()
    store = RunStore(home.database)
    values = {"base_model_path": "m", "prompts_path": "p", "teacher_kind": "claude", "teacher_cache_only": True}
    config = parse_config(values)
    store.create("mine", "distillation", config.model_dump(mode="json"))
    row = store.get("mine")
    _hire(JobContext(row, home, store, RunRecorder(store, home, row, lambda: False)), config)
    hold = got["hold_owner"]

    def is_dead(owner: str) -> bool:
        holding: AbstractContextManager[bool] = hold(owner)
        with holding as found:
            return found

    assert not is_dead(got["owner"])
    assert is_dead("mine:99")
    assert is_dead("another:1")
    lock = try_lock(home.run_lock("another"))
    assert lock is not None  # it was let go
    assert not is_dead("another:1")
    os.close(lock)
    with hold("another:1") as found:
        assert found and try_lock(home.run_lock("another")) is None


def test_a_teachers_near_end_is_an_event_once_also_in_a_run_of_many_events(
    home: HomePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PriceTable, "retirement_notice", lambda *_: "It retires soon.")
    monkeypatch.setattr(jobs, "EVENTS_SEARCHED", 3)
    home.prepare()
    store = RunStore(home.database)
    row = store.create("mine", "distillation", {})
    context = JobContext(row, home, store, RunRecorder(store, home, row, lambda: False))
    for number in range(9):
        store.add_event("mine", "checkpoint", f"step {number}")
    for _ in range(3):
        _tell_retirement(context, "a-model")
    assert [event.message for event in store.events("mine") if event.kind == "warning"] == ["It retires soon."]
