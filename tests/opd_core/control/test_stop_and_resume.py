"""Which ended runs go on, with what changed, and what a resume that comes too early or twice is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from opd_core.comparison import ComparisonSpec
from opd_core.config_io import read_config
from opd_core.control.processes import try_lock
from opd_core.control.runs import Runs
from opd_core.errors import ConfigError, StateError
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from tests.opd_core.control.runs_kit import Check, config, end
from tests.opd_core.control.scripted_worker import Orders
from tests.waiting import wait_until


def test_a_stopped_run_resumes_with_more_steps(runs: Runs, home: HomePaths, store: RunStore) -> None:
    home.prepare()
    orders = Orders(home, "mine")
    runs.start(config(run_id="mine", num_training_steps=10))
    orders.send("step", "step")
    wait_until(lambda: store.get("mine").step == 2, 20)
    assert runs.stop("mine", 10).state == "stopped"
    row = runs.resume("mine", num_training_steps=20)
    assert (row.step, row.total_steps) == (2, 20)
    assert read_config(home.config("mine")).num_training_steps == 20
    orders.send("step", "finish")
    wait_until(lambda: store.get("mine").state == "completed", 20)
    done = runs.status("mine")
    assert (done.step, done.epoch) == (3, 2)
    orders.close()


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("state", ["stopped", "failed", "interrupted"])
def test_a_run_that_ended_early_can_be_resumed(runs: Runs, store: RunStore, state: str) -> None:
    runs.start(config(run_id="mine"))
    end(store, "mine", state)
    row = runs.resume()
    assert (row.run_id, row.state, row.end_reason) == ("mine", "queued", None)


@pytest.mark.usefixtures("busy")
def test_what_is_not_over_or_is_complete_cannot_be_resumed(runs: Runs, store: RunStore) -> None:
    runs.start(config(run_id="mine"))
    with pytest.raises(StateError, match=r"mine is queued already.*Follow it with get_status"):
        runs.resume("mine")
    end(store, "mine", "completed", final_adapter_path="/checkpoints/mine")
    with pytest.raises(StateError, match=r"completed.*student_adapter_path /checkpoints/mine"):
        runs.resume("mine")


@pytest.mark.usefixtures("busy")
def test_a_run_that_is_stopping_can_be_resumed_when_it_has_stopped(
    runs: Runs, home: HomePaths, store: RunStore
) -> None:
    runs.start(config(run_id="mine"))
    epoch, alive = store.claim("mine"), try_lock(home.run_lock("mine"))
    assert alive is not None
    store.request_stop("mine")
    with pytest.raises(StateError, match=r"mine is stopping.*then resume it"):
        runs.resume("mine")
    store.finish("mine", "stopped", "by_user", epoch=epoch, message="")
    os.close(alive)
    assert runs.resume("mine").state == "queued"


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call resumes the run between a resume's look at its state and its own change."""
    requeue = RunStore.requeue

    def requeue_twice(self: RunStore, run_id: str, **changed: Any) -> None:
        requeue(self, run_id, **changed)
        requeue(self, run_id, **changed)

    monkeypatch.setattr(RunStore, "requeue", requeue_twice)


@pytest.mark.usefixtures("busy", "raced")
def test_of_two_resumes_at_once_the_loser_is_told_that_the_run_is_going_again(runs: Runs, store: RunStore) -> None:
    runs.start(config(run_id="mine"))
    end(store, "mine")
    with pytest.raises(StateError, match=r"^mine is queued already.*another call.*Follow it with get_status"):
        runs.resume("mine")
    assert store.get("mine").state == "queued"


@pytest.mark.usefixtures("busy")
def test_a_resume_cannot_shorten_a_run(runs: Runs, store: RunStore) -> None:
    runs.start(config(run_id="mine", num_training_steps=10))
    end(store, "mine")
    with pytest.raises(ConfigError, match="9 is less than the run's 10"):
        runs.resume("mine", num_training_steps=9)
    assert store.get("mine").state == "interrupted"


@pytest.mark.usefixtures("busy")
def test_a_larger_budget_needs_confirmation_and_passes_the_ceiling_check(
    runs: Runs, store: RunStore, check: Check
) -> None:
    runs.start(config(run_id="mine", max_budget_usd=5.0))
    end(store, "mine")
    with pytest.raises(ConfigError, match="confirmed true"):
        runs.resume("mine", max_budget_usd=7)
    check.refusal = ConfigError("max_budget_usd 7 is above OPD_MAX_BUDGET_USD.")
    with pytest.raises(ConfigError, match="OPD_MAX_BUDGET_USD"):
        runs.resume("mine", max_budget_usd=7, confirmed=True)
    check.refusal = None
    assert runs.resume("mine", max_budget_usd=7, confirmed=True).config["max_budget_usd"] == 7.0


def test_an_interrupted_comparison_can_be_run_again(
    runs: Runs, compared: Callable[..., ComparisonSpec], store: RunStore
) -> None:
    job_id = runs.start_comparison(compared()).run_id
    end(store, job_id)
    for changes in ({"max_budget_usd": 9.0, "confirmed": True}, {"num_training_steps": 9}):
        with pytest.raises(ConfigError, match="compare_adapters again with a larger judge_budget_usd"):
            runs.resume(job_id, **changes)
    assert runs.resume(job_id).state == "queued"
