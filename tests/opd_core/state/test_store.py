from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from opd_core.errors import RunNotFoundError, StaleWorkerError, StateError
from opd_core.state.rows import ALLOWED_CHANGES, RunRow
from opd_core.state.store import RunStore
from opd_core.types import END_STATES, LIVE_STATES, RESUMABLE_STATES, RunState

STATES: tuple[RunState, ...] = get_args(RunState)
# How to bring a new run into each state.
WAYS: dict[RunState, tuple[RunState, ...]] = {
    "queued": (),
    "preparing": ("preparing",),
    "running": ("preparing", "running"),
    "waiting": ("preparing", "running", "waiting"),
    "stopping": ("preparing", "running", "stopping"),
    "completed": ("preparing", "running", "completed"),
    "stopped": ("stopped",),
    "failed": ("preparing", "failed"),
    "interrupted": ("preparing", "interrupted"),
}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "opd.db")


def make(store: RunStore, run_id: str = "run", state: RunState = "queued") -> RunRow:
    row = store.create(run_id, "distillation", {"seed": 1}, total_steps=30)
    for step in WAYS[state]:
        row = store.transition(run_id, step)
    return row


def claimed(store: RunStore, run_id: str = "run") -> int:
    make(store, run_id)
    return store.claim(run_id)


# --- states


def test_the_ways_reach_every_state(store: RunStore) -> None:
    assert set(WAYS) == set(STATES) == set(ALLOWED_CHANGES)
    for state in STATES:
        assert make(store, state, state).state == state


@pytest.mark.parametrize(("source", "target"), list(itertools.product(STATES, STATES)))
def test_exactly_the_listed_changes_are_possible(store: RunStore, source: RunState, target: RunState) -> None:
    make(store, state=source)
    if target in ALLOWED_CHANGES[source]:
        assert store.transition("run", target).state == target
    else:
        with pytest.raises(StateError, match=f"is {source} and cannot become {target}"):
            store.transition("run", target)
        assert store.get("run").state == source


def test_the_table_says_what_the_state_names_promise() -> None:
    """Ends are left only through the queue, and only the resumable ones; only the queue leads to a worker."""
    for state in END_STATES:
        assert ALLOWED_CHANGES[state] == ({"queued"} if state in RESUMABLE_STATES else set())
    assert [state for state in STATES if "preparing" in ALLOWED_CHANGES[state]] == ["queued"]
    for state in LIVE_STATES:
        assert {"failed", "interrupted", "stopped"} <= ALLOWED_CHANGES[state]


def test_a_claim_by_an_outdated_look_at_the_queue_does_not_push_in(store: RunStore) -> None:
    """A starter saw the run first in the queue; before its claim the run was cancelled and resumed."""
    make(store, "seen first")
    make(store, "second")
    store.request_stop("seen first")
    store.requeue("seen first", config={}, total_steps=30)
    with pytest.raises(StateError, match="number 2 in the queue"):
        store.claim("seen first", if_first=True)
    assert (store.get("seen first").state, store.claim("second", if_first=True)) == ("queued", 1)


def test_of_racing_claims_one_wins(store: RunStore) -> None:
    make(store)
    barrier, outcomes = threading.Barrier(8), list[object]()

    def claim() -> None:
        barrier.wait()
        try:
            outcomes.append(store.claim("run"))
        except StateError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [1]
    assert len(outcomes) == 8


def test_an_end_is_recorded_once(store: RunStore) -> None:
    epoch = claimed(store)
    row = store.finish("run", "completed", "finished", epoch=epoch, message="All done.", best_step=20)
    assert (row.state, row.end_reason, row.message, row.best_step) == ("completed", "finished", "All done.", 20)
    with pytest.raises(StateError):
        store.finish("run", "interrupted", "worker_died", epoch=epoch, message="")
    assert store.get("run") == row


def test_changes_of_state_are_events_in_order(store: RunStore) -> None:
    epoch = claimed(store)
    store.transition("run", "running", epoch=epoch)
    store.finish("run", "stopped", "by_user", epoch=epoch, message="Stopped by request.")
    events = store.events("run")
    assert [event.message for event in events] == ["queued", "preparing", "running", "stopped: Stopped by request."]
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)
    assert store.events("run", 2) == events[2:], "the newest, oldest first"
    assert store.events("another") == []


def test_a_refused_change_leaves_no_event(store: RunStore) -> None:
    make(store)
    before = store.events()
    with pytest.raises(StateError):
        store.transition("run", "completed")
    assert store.events() == before


# --- the epoch fence


def test_each_start_has_a_new_epoch(store: RunStore) -> None:
    first = claimed(store)
    store.finish("run", "interrupted", "worker_died", epoch=first, message="")
    store.requeue("run", config={}, total_steps=30)
    assert store.claim("run") == first + 1


def test_no_write_of_a_passed_epoch_is_taken(store: RunStore) -> None:
    old = claimed(store)
    store.finish("run", "interrupted", "worker_died", epoch=old, message="")
    store.requeue("run", config={}, total_steps=30)
    store.claim("run")
    before, events = store.get("run"), store.events()
    writes: list[Callable[[], RunRow]] = [
        lambda: store.adopt("run", old, 1, "boot 1"),
        lambda: store.heartbeat("run", old, phase="update"),
        lambda: store.append_metrics("run", old, "train", {"step": 1}, step=1),
        lambda: store.cut_metrics("run", old, "train", None, step=0),
        lambda: store.transition("run", "running", epoch=old),
        lambda: store.finish("run", "completed", "finished", epoch=old, message=""),
    ]
    for write in writes:
        with pytest.raises(StaleWorkerError):
            write()
    after = store.get("run")
    assert (after.state, after.step, after.phase, after.pid) == (before.state, before.step, before.phase, before.pid)
    assert store.metrics("run") == []
    assert store.events() == events


def test_a_worker_whose_end_was_recorded_by_others_writes_no_more(store: RunStore) -> None:
    epoch = claimed(store)
    store.finish("run", "interrupted", "worker_died", epoch=epoch, message="")
    with pytest.raises(StaleWorkerError, match="interrupted"):
        store.heartbeat("run", epoch)


# --- creating and finding


def test_a_new_run_waits_in_the_queue(store: RunStore) -> None:
    row = store.create("run", "distillation", {"beta": 1.0}, total_steps=30, session_id="s")
    assert (row.state, row.step, row.total_steps, row.epoch, row.session_id) == ("queued", 0, 30, 0, "s")
    assert row.config == {"beta": 1.0}
    assert row.queue_position == 1
    assert row.heartbeat_age_seconds is None
    assert store.get("run") == row


def test_the_same_request_gives_the_same_run(store: RunStore) -> None:
    first = store.create("a", "distillation", {}, client_request_id="x")
    assert store.create("b", "distillation", {}, client_request_id="x") == first
    assert store.find_request("x") == first
    assert store.find_request(None) is None
    assert len(store.list()) == 1


def test_runs_without_a_request_id_are_all_different(store: RunStore) -> None:
    store.create("a", "distillation", {})
    store.create("b", "distillation", {})
    assert len(store.list()) == 2


def test_a_taken_id_is_refused(store: RunStore) -> None:
    make(store)
    with pytest.raises(StateError, match="'run' is taken"):
        make(store)


def test_what_must_exist_with_the_row_decides_whether_there_is_one(store: RunStore) -> None:
    def fail() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        store.create("run", "distillation", {}, before_commit=fail)
    assert store.list() == [] and store.events() == []


def test_an_unknown_run_is_named_with_recent_ones(store: RunStore) -> None:
    with pytest.raises(RunNotFoundError, match="no runs yet"):
        store.get("opd_1")
    make(store, "opd_2")
    for ask in (store.get, store.resolve, store.claim):
        with pytest.raises(RunNotFoundError, match=r"'opd_1'.*opd_2"):
            ask("opd_1")


def test_no_name_means_the_current_distillation_else_the_latest(store: RunStore) -> None:
    with pytest.raises(RunNotFoundError, match="start_distillation"):
        store.resolve()
    make(store, "a", "running")
    make(store, "b", "completed")
    store.create("job", "comparison", {})
    assert store.resolve().run_id == store.resolve("latest").run_id == "a"
    store.transition("a", "completed")
    assert store.resolve().run_id == "b"


def test_a_unique_beginning_names_a_run_and_an_exact_name_beats_longer_ones(store: RunStore) -> None:
    for run_id in ("opd_1", "opd_1_ab", "opd_2"):
        make(store, run_id)
    assert store.resolve("opd_2").run_id == "opd_2"
    assert store.resolve("opd_1_").run_id == "opd_1_ab"
    assert store.resolve("opd_1").run_id == "opd_1"
    with pytest.raises(RunNotFoundError, match="fits several"):
        store.resolve("opd")
    with pytest.raises(RunNotFoundError):
        store.resolve("opd%")


def test_lists_are_newest_first_filtered_and_paged(store: RunStore) -> None:
    for number in range(5):
        store.create(f"run{number}", "distillation", {}, session_id="even" if number % 2 == 0 else None)
    store.transition("run3", "stopped")
    assert [row.run_id for row in store.list(limit=2)] == ["run4", "run3"]
    assert [row.run_id for row in store.list(before_number=store.get("run3").number)] == ["run2", "run1", "run0"]
    assert [row.run_id for row in store.list(session_id="even")] == ["run4", "run2", "run0"]
    assert [row.run_id for row in store.list(state="stopped")] == ["run3"]


# --- queue, stop and resume


def test_the_queue_is_first_come_first_served_and_a_resumed_run_goes_last(store: RunStore) -> None:
    for run_id in ("a", "b", "c"):
        make(store, run_id)
    assert [store.get(run_id).queue_position for run_id in ("a", "b", "c")] == [1, 2, 3]
    store.request_stop("a")
    store.requeue("a", config={}, total_steps=30)
    order = []
    while (row := store.next_queued()) is not None:
        order.append(row.run_id)
        store.claim(row.run_id)
    assert order == ["b", "c", "a"]


def test_stopping_a_queued_run_ends_it_at_once(store: RunStore) -> None:
    make(store)
    row = store.request_stop("run")
    assert (row.state, row.end_reason, row.step) == ("stopped", "by_user", 0)
    assert row.finished_at is not None
    assert store.next_queued() is None


@pytest.mark.parametrize("state", ["preparing", "running", "waiting"])
def test_stopping_a_live_run_is_a_request(store: RunStore, state: RunState) -> None:
    make(store, state=state)
    row = store.request_stop("run")
    assert (row.state, row.stop_requested) == ("stopping", True)
    assert store.request_stop("run") == row


@pytest.mark.parametrize("state", END_STATES)
def test_stopping_an_ended_run_changes_nothing(store: RunStore, state: RunState) -> None:
    row = make(store, state=state)
    assert store.request_stop("run") == row


def test_a_requeued_run_forgets_its_end_and_keeps_its_progress(store: RunStore) -> None:
    epoch = claimed(store)
    store.append_metrics("run", epoch, "train", {"step": 7}, step=7)
    store.request_stop("run")
    store.finish("run", "failed", "error", epoch=epoch, message="x", error_message="x")
    row = store.requeue("run", config={"num_training_steps": 60}, total_steps=60)
    assert (row.state, row.step, row.total_steps, row.stop_requested) == ("queued", 7, 60, False)
    assert (row.end_reason, row.error_message, row.finished_at) == (None, None, None)
    assert row.config == {"num_training_steps": 60}


# --- progress and facts


def test_a_heartbeat_has_an_age_only_while_a_worker_is_due(store: RunStore) -> None:
    epoch = claimed(store)
    live = store.heartbeat("run", epoch, phase="rollout", phase_fraction=0.5)
    assert live.heartbeat_age_seconds is not None and 0 <= live.heartbeat_age_seconds < 60
    assert (live.phase, live.phase_fraction) == ("rollout", 0.5)
    ended = store.finish("run", "stopped", "by_user", epoch=epoch, message="")
    assert ended.heartbeat_age_seconds is None and ended.heartbeat_at is not None
    assert ended.phase is None and ended.pid is None


def test_a_metrics_line_and_its_row_change_together(store: RunStore) -> None:
    epoch = claimed(store)
    row = store.append_metrics("run", epoch, "train", {"step": 1, "kl_loss": 0.5}, step=1, latest_metrics='{"a": 1}')
    assert (row.step, row.latest_metrics) == (1, {"a": 1})
    assert store.metrics("run") == [{"step": 1, "kl_loss": 0.5}]


def test_facts_are_remembered_and_replaced(store: RunStore) -> None:
    assert store.get_fact("blas") is None
    store.set_fact("blas", {"gflops": 180.5})
    store.set_fact("blas", {"gflops": 190.0})
    assert store.get_fact("blas") == {"gflops": 190.0}
    with pytest.raises(ValueError):
        store.set_fact("blas", {"gflops": float("nan")})
