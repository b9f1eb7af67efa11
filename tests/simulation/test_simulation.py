"""The control plane under faults of every kind. `python -m tests.simulation --seed N` replays what fails here."""

from __future__ import annotations

import pytest

from tests.simulation.many import Summary, find_planted, run_many
from tests.simulation.planted import PLANTED
from tests.simulation.schedule import check_seed, run_schedule
from tests.simulation.world import Violation

SCHEDULES = 10_000
MOST_FOR_PLANTED = 2_000


def test_a_seed_replays_to_the_last_turn() -> None:
    first, again = run_schedule(7), run_schedule(7)
    assert (again.trace, again.turns, again.violation) == (first.trace, first.turns, first.violation)
    assert first.trace != run_schedule(8).trace


def test_a_few_schedules_keep_every_promise() -> None:
    for seed in range(100):
        check_seed(seed)


def test_a_broken_promise_names_its_seed_and_what_led_to_it() -> None:
    with pytest.raises(Violation, match=r"seed 0.*\n(.*\n)*.*BROKEN(.*\n)*Replay: python -m tests.simulation --seed 0"):
        check_seed(0, PLANTED["life judged by heartbeats"])


@pytest.mark.slow
def test_no_schedule_breaks_a_promise_and_every_fault_came_to_pass() -> None:
    total = Summary()
    for total in run_many(range(SCHEDULES)):
        assert not total.broken, next(iter(total.broken.values()))
    assert total.schedules == SCHEDULES
    assert total.runs > SCHEDULES
    assert min(total.figures.values()) > SCHEDULES / 100, total.figures


@pytest.mark.slow
def test_every_planted_fault_is_found() -> None:
    found = find_planted(list(PLANTED), MOST_FOR_PLANTED)
    assert [name for name, what in found.items() if what is None] == []
