from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opd_core.errors import BudgetExceededError, BudgetFrozenError, DuplicateCallError, OPDError, StateError
from opd_core.money.amounts import PICO_PER_USD
from opd_core.money.ledger import Ledger, Totals
from opd_core.money.response_cache import ResponseCache
from tests.opd_core.money.books import MONTH, Clock, hold, query, reserve


def test_a_reservation_counts_until_the_call_is_settled_at_its_cost(ledger: Ledger, path: Path) -> None:
    call_id = reserve(ledger, "a")
    assert ledger.totals("run") == Totals("run", 1000, 0, 100, calls=1, open_calls=1)
    ledger.settle(call_id, 60, '{"input_tokens": 3}', "req_1", "the reply")
    assert ledger.totals("run") == Totals("run", 1000, 60, 0, calls=1, settled_calls=1)
    assert ledger.month_totals() == Totals(MONTH, 1500, 60, 0, calls=1, settled_calls=1)
    assert ResponseCache(path).get("a") == "the reply"
    columns = "request_id, usage, model, price_version, owner, attempt, opened_at, closed_at"
    at = "2026-11-23T12:00:00.000Z"
    assert query(path, f"SELECT {columns} FROM calls") == [
        ("req_1", '{"input_tokens": 3}', "claude-sonnet-5-5", "2026-10-25", "worker", 1, at, at)
    ]


def test_a_release_costs_nothing_and_a_forfeit_the_whole_reservation(ledger: Ledger) -> None:
    ledger.release(reserve(ledger, "a"), "529")
    ledger.forfeit(reserve(ledger, "a"), "timeout")
    expected = Totals("run", 1000, 100, 0, calls=2, released_calls=1, forfeited_calls=1, forfeited_pico=100)
    assert ledger.totals("run") == expected


def test_the_last_cent_can_be_spent_and_not_one_more(ledger: Ledger) -> None:
    reserve(ledger, "a", 999)
    with pytest.raises(BudgetExceededError):
        reserve(ledger, "b", 2)
    reserve(ledger, "b", 1)
    assert ledger.totals("run").left_pico == 0


def test_a_refusal_names_the_budget_and_what_to_do(path: Path) -> None:
    ledger = Ledger(path, month_limit_pico=8 * PICO_PER_USD, clock=Clock())
    for run_id in ("first", "second"):
        ledger.open_budget(run_id, 5 * PICO_PER_USD)
    reserve(ledger, "a", 4 * PICO_PER_USD, "first")
    with pytest.raises(
        BudgetExceededError, match=r"run first \(\$5\.00\) has \$1\.00 left.*resume_distillation"
    ) as caught:
        reserve(ledger, "b", PICO_PER_USD + 1, "first")
    error = caught.value
    assert (error.scope, error.left_pico, error.needed_pico, error.field) == (
        "run", PICO_PER_USD, PICO_PER_USD + 1, "max_budget_usd",
    )  # fmt: skip
    with pytest.raises(
        BudgetExceededError,
        match=r"for 2026-11 \(\$8\.00, by the lowest OPD_MONTHLY_BUDGET_USD.* has \$4\.00.*opd set-month",
    ) as caught:
        reserve(ledger, "c", 5 * PICO_PER_USD, "second")
    assert (caught.value.scope, caught.value.left_pico) == ("month", 4 * PICO_PER_USD)


def test_a_refused_reservation_leaves_nothing(ledger: Ledger, path: Path) -> None:
    with pytest.raises(BudgetExceededError):
        reserve(ledger, "a", 1001)
    assert query(path, "SELECT COUNT(*) FROM calls") == [(0,)]
    assert ledger.totals("run") == Totals("run", 1000)


@pytest.mark.parametrize("amount", [0, -5])
def test_a_reservation_of_nothing_is_refused(ledger: Ledger, amount: int) -> None:
    with pytest.raises(StateError, match="refused a reservation"):
        reserve(ledger, "a", amount)


def test_a_run_without_a_budget_makes_no_paid_call(ledger: Ledger) -> None:
    with pytest.raises(StateError, match=r"Run other has no budget.*max_budget_usd"):
        reserve(ledger, "a", run_id="other")
    assert ledger.totals("other") == Totals("other")


def test_the_same_request_is_never_open_twice_nor_bought_again(ledger: Ledger) -> None:
    ledger.open_budget("other", 1000)
    call_id = reserve(ledger, "a")
    with pytest.raises(DuplicateCallError, match="on its way already"):
        reserve(ledger, "a", run_id="other")
    ledger.settle(call_id, 10, "{}", None, "reply")
    with pytest.raises(DuplicateCallError, match="paid for and stored"):
        reserve(ledger, "a", run_id="other")


def test_a_request_whose_reply_was_not_kept_may_be_asked_again(ledger: Ledger, path: Path) -> None:
    ledger.settle(reserve(ledger, "a"), 10, "{}", None, None)
    reserve(ledger, "a")
    assert query(path, "SELECT attempt FROM calls ORDER BY number") == [(1,), (2,)]


def test_a_closed_call_is_closed(ledger: Ledger) -> None:
    call_id = reserve(ledger, "a")
    ledger.release(call_id, "529")
    closings: list[Callable[[], None]] = [
        lambda: ledger.settle(call_id, 10, "{}", None, "late"),
        lambda: ledger.release(call_id, "again"),
        lambda: ledger.forfeit(call_id, "again"),
    ]
    for close in closings:
        with pytest.raises(StateError, match="is released and cannot become"):
            close()
    with pytest.raises(StateError, match="is unknown"):
        ledger.forfeit("nothing", "no such call")
    assert ledger.totals("run").spent_pico == 0


def test_settling_and_storing_happen_together_or_not_at_all(ledger: Ledger, path: Path) -> None:
    call_id = reserve(ledger, "a")
    query(path, "CREATE TRIGGER broken BEFORE INSERT ON responses BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(OPDError):
        ledger.settle(call_id, 10, "{}", None, "reply")
    assert ledger.totals("run") == Totals("run", 1000, 0, 100, calls=1, open_calls=1)
    query(path, "DROP TRIGGER broken")
    ledger.settle(call_id, 10, "{}", None, "reply")


def test_an_overrun_is_recorded_as_it_is_and_freezes_run_and_month(ledger: Ledger) -> None:
    ledger.open_budget("other", 400)
    ledger.settle(reserve(ledger, "a", 100), 150, "{}", None, "reply")
    assert ledger.totals("run") == Totals("run", 1000, 150, 0, frozen=True, calls=1, settled_calls=1)
    assert ledger.month_totals().frozen
    for run_id in ("run", "other"):
        with pytest.raises(BudgetFrozenError, match=r"frozen since 2026-11-23.*cost 150 of 100.*A person must compare"):
            reserve(ledger, "b", 1, run_id)


def test_only_a_named_person_lifts_a_freeze(ledger: Ledger, path: Path) -> None:
    ledger.forfeit(reserve(ledger, "a"), "a reply without a price", freeze=True)
    ledger.rebuild_check()
    ledger.unfreeze(MONTH, "the usage page agrees", "Ada")
    with pytest.raises(BudgetFrozenError, match=r"of run run is frozen.*a reply without a price"):
        reserve(ledger, "b")
    ledger.unfreeze("run", "the usage page agrees", "Ada")
    reserve(ledger, "b")
    ledger.rebuild_check()
    last = query(path, "SELECT scope, why, by_whom FROM budget_changes ORDER BY number DESC LIMIT 1")
    assert last == [("run", "the usage page agrees", "Ada")]
    with pytest.raises(StateError, match="not frozen"):
        ledger.unfreeze("run", "again", "Ada")


def test_open_calls_of_a_frozen_budget_still_close(ledger: Ledger) -> None:
    first, second = reserve(ledger, "a"), reserve(ledger, "b")
    ledger.settle(first, 150, "{}", None, None)
    ledger.settle(second, 200, "{}", None, None)
    assert ledger.totals("run").spent_pico == 350
    ledger.rebuild_check()


def test_a_budget_opens_once_shrinks_freely_and_grows_only_on_purpose(ledger: Ledger) -> None:
    ledger.open_budget("run", 1000)
    with pytest.raises(StateError, match="confirmed=true"):
        ledger.open_budget("run", 1001)
    ledger.raise_limit("run", 1200)
    reserve(ledger, "a", 1200)
    ledger.open_budget("run", 500)
    assert (ledger.totals("run").limit_pico, ledger.totals("run").left_pico) == (500, 0)
    with pytest.raises(BudgetExceededError):
        reserve(ledger, "b", 1)
    with pytest.raises(StateError, match="higher budget"):
        ledger.raise_limit("run", 400)
    with pytest.raises(StateError, match="no budget yet"):
        ledger.raise_limit("other", 400)
    ledger.rebuild_check()


def test_a_new_month_has_a_new_limit_but_a_run_keeps_its_own(ledger: Ledger, clock: Clock) -> None:
    ledger.open_budget("other", 2000)
    first = reserve(ledger, "a", 900)
    reserve(ledger, "b", 600, "other")
    clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    reserve(ledger, "c", 1300, "other")
    with pytest.raises(BudgetExceededError, match="run run"):
        reserve(ledger, "d", 101)
    ledger.settle(first, 900, "{}", None, None)  # charged to the month that admitted it
    assert ledger.month_totals() == Totals("month:2026-12", 1500, 0, 1300, calls=1, open_calls=1)
    clock.now -= timedelta(days=1)
    assert (ledger.month_totals().spent_pico, ledger.month_totals().reserved_pico) == (900, 600)


def test_a_month_without_calls_shows_its_limit(ledger: Ledger) -> None:
    assert ledger.month_totals() == Totals(MONTH, limit_pico=1500)


def test_a_person_can_correct_a_closed_call_down_to_nothing(ledger: Ledger, path: Path) -> None:
    ledger.settle(reserve(ledger, "another", 300), 300, "{}", None, None)
    call_id = reserve(ledger, "a")
    with pytest.raises(StateError, match="not closed"):
        ledger.adjust(call_id, -10, "not on the bill", "Ada")
    ledger.forfeit(call_id, "timeout")
    ledger.adjust(call_id, -60, "only partly on the bill", "Ada")
    for delta, why, by_whom in ((-41, "too much", "Ada"), (-1, " ", "Ada"), (-1, "nobody", "")):
        with pytest.raises(StateError, match="cannot be adjusted"):
            ledger.adjust(call_id, delta, why, by_whom)
    ledger.adjust(call_id, -40, "not on the bill", "Ada")
    assert (ledger.totals("run").spent_pico, ledger.totals("run").forfeited_pico) == (300, 0)
    ledger.adjust(call_id, 70, "on the bill after all", "Ada")
    assert ledger.month_totals().spent_pico == 370
    assert query(path, "SELECT state, actual_pico FROM calls") == [("settled", 300), ("forfeited", 100)]
    ledger.rebuild_check()


def test_recovery_forfeits_only_what_dead_owners_left(ledger: Ledger) -> None:
    reserve(ledger, "a", owner="dead#1")
    reserve(ledger, "b", owner="dead#1")
    alive = reserve(ledger, "c", owner="alive#2")
    ledger.release(reserve(ledger, "d", owner="dead#1"), "529")
    assert ledger.recover(hold("dead#1")) == 2
    assert ledger.recover(hold("dead#1")) == 0
    totals = ledger.totals("run")
    assert (totals.forfeited_calls, totals.open_calls, totals.spent_pico, totals.reserved_pico) == (2, 1, 200, 100)
    ledger.settle(alive, 10, "{}", None, None)


def test_recovery_writes_while_it_holds_the_owners_lock(ledger: Ledger, path: Path) -> None:
    reserve(ledger, "a", owner="dead")
    seen = []

    @contextlib.contextmanager
    def lock(owner: str) -> Iterator[bool]:
        seen.append(query(path, "SELECT state FROM calls"))
        yield True
        seen.append(query(path, "SELECT state FROM calls"))

    ledger.recover(lock)
    assert seen == [[("open",)], [("forfeited",)]]


def test_a_batch_outlives_its_worker_and_is_found_again(ledger: Ledger) -> None:
    calls = [
        ledger.reserve("run", key, "claude-sonnet-5-5", "v", 100, "dead", is_batch=True) for key in ("a", "b", "c")
    ]
    plain = reserve(ledger, "d", owner="dead")
    ledger.set_batch_id(calls[:2], "batch_1")
    ledger.set_batch_id(calls[:2], "batch_1")
    assert ledger.recover(hold("dead")) == 1
    found = ledger.open_batch_calls()
    assert [(call.call_id, call.request_key, call.batch_id) for call in found] == [
        (calls[0], "a", "batch_1"), (calls[1], "b", "batch_1"), (calls[2], "c", None),
    ]  # fmt: skip
    for call_id, batch_id in ((calls[0], "batch_2"), (plain, "batch_1"), ("none", "batch_1")):
        with pytest.raises(StateError, match="no open call for batch"):
            ledger.set_batch_id([call_id], batch_id)
    ledger.settle(calls[0], 10, "{}", None, "reply")
    assert [call.request_key for call in ledger.open_batch_calls()] == ["b", "c"]


def test_an_open_batch_call_tells_when_and_by_whom_it_was_opened_and_whether_it_was_sent(ledger: Ledger) -> None:
    calls = [
        ledger.reserve("run", key, "claude-sonnet-5-5", "v", 100, "dead", is_batch=True) for key in ("a", "b", "c")
    ]
    plain = reserve(ledger, "d", owner="dead")
    ledger.note_submission(calls[:1])
    ledger.set_batch_id(calls[1:2], "batch_1")
    found = ledger.open_batch_calls()
    assert [call.was_submitted for call in found] == [True, True, False]
    assert {call.owner for call in found} == {"dead"} and all(call.opened_at.tzinfo for call in found)
    ledger.release(calls[0], "over")
    for call_id in (calls[0], calls[1], plain, "none"):
        with pytest.raises(StateError, match="waits for its batch"):
            ledger.note_submission([call_id])
    ledger.rebuild_check()


def test_cache_hits_are_counted_and_cost_nothing(ledger: Ledger) -> None:
    ledger.count_cache_hits("run")
    ledger.count_cache_hits("run", 4)
    assert ledger.totals("run") == Totals("run", 1000, cache_hits=5)
    ledger.rebuild_check()


@pytest.mark.parametrize(("used", "is_near"), [(799, False), (800, True), (1000, True)])
def test_the_warning_comes_at_eighty_percent_of_spent_and_reserved(ledger: Ledger, used: int, is_near: bool) -> None:
    ledger.settle(reserve(ledger, "a", 500), 500, "{}", None, None)
    reserve(ledger, "b", used - 500)
    assert ledger.totals("run").is_near_limit is is_near
    assert ledger.totals("run").used_fraction == used / 1000


def test_threads_racing_for_the_last_cent_admit_exactly_what_fits(ledger: Ledger, path: Path, clock: Clock) -> None:
    start = threading.Barrier(8)
    admitted: list[str] = []
    others: list[Exception] = []

    def race(number: int) -> None:
        # half of the threads share one ledger, half have one each as processes would
        mine = ledger if number % 2 else Ledger(path, month_limit_pico=1500, clock=clock)
        start.wait()
        for attempt in range(10):
            try:
                admitted.append(reserve(mine, f"{number} {attempt}", 100))
            except BudgetExceededError:
                pass
            except Exception as error:
                others.append(error)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(admitted), others) == (10, [])
    assert ledger.totals("run").reserved_pico == 1000
    ledger.rebuild_check()


def test_threads_with_the_same_request_make_one_call(ledger: Ledger) -> None:
    start = threading.Barrier(6)
    outcomes: list[str] = []

    def race() -> None:
        start.wait()
        try:
            reserve(ledger, "same")
            outcomes.append("admitted")
        except DuplicateCallError:
            outcomes.append("duplicate")

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["admitted"] + ["duplicate"] * 5


def test_a_freeze_outlives_its_month_until_a_person_has_looked(ledger: Ledger, clock: Clock) -> None:
    ledger.open_budget("other", 400)
    ledger.settle(reserve(ledger, "a", 100), 150, "{}", None, "reply")
    clock.now += timedelta(days=31)
    assert ledger.frozen_scopes("other") == [MONTH] and ledger.month_totals().frozen
    with pytest.raises(
        BudgetFrozenError, match=r"2026-12 .*still frozen since month:2026-11.*opd unfreeze month:2026-12"
    ):
        reserve(ledger, "b", 1, "other")
    assert ledger.frozen_scopes("run") == ["month:2026-12", "run"]
    assert ledger.unfreeze("month:2026-12", "the usage page agrees", "Ada") == [MONTH, "month:2026-12"]
    reserve(ledger, "b", 1, "other")
    clock.now += timedelta(days=31)
    reserve(ledger, "c", 1, "other")


def overrun(ledger: Ledger, call_id: str) -> None:
    ledger.settle(call_id, 150, "{}", None, "reply")


def price_unknown(ledger: Ledger, call_id: str) -> None:
    ledger.forfeit(call_id, "no price", freeze=True)


@pytest.mark.parametrize("late", [overrun, price_unknown])
@pytest.mark.parametrize("days", [31, 70, -31])
def test_a_freeze_that_comes_when_the_month_is_over_stops_the_months_that_have_begun(
    ledger: Ledger, clock: Clock, late: Callable[[Ledger, str], None], days: int
) -> None:
    """Also when the clock has gone back by a month."""
    ledger.open_budget("other", 400)
    call_id = reserve(ledger, "a", 100)
    clock.now += timedelta(days=days)
    reserve(ledger, "b", 1, "other")
    late(ledger, call_id)
    assert ledger.month_totals().frozen
    with pytest.raises(BudgetFrozenError, match=r"call|no price"):
        reserve(ledger, "c", 1, "other")
    month = f"month:{clock.now:%Y-%m}"
    assert ledger.frozen_scopes("other") == [month]
    assert set(ledger.unfreeze(month, "the usage page agrees", "Ada")) == {MONTH, month}
    reserve(ledger, "c", 1, "other")
    ledger.rebuild_check()


def test_the_reason_of_a_freeze_is_not_hidden_by_what_came_later(ledger: Ledger, path: Path, clock: Clock) -> None:
    ledger.open_budget("other", 400)
    ledger.settle(reserve(ledger, "a", 100), 150, "{}", None, "reply")
    lower = Ledger(path, month_limit_pico=900, clock=clock)
    for _ in range(2):
        with pytest.raises(BudgetFrozenError, match="cost 150 of 100"):
            reserve(lower, "b", 1, "other")
