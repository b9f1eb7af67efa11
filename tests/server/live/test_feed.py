"""The live feed: what a reader gets, from wherever it begins, however slowly it reads."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.control import following
from opd_core.errors import StoreError
from opd_core.money.amounts import PICO_PER_USD
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.seams import utc_moment
from opd_core.state import events
from server.live import feed as feed_module
from server.live.feed import RING_MESSAGES, Feed
from tests.server.live.feed_kit import Writer, kept, listening, quick_feed, take, take_until


def play(act: Callable[[], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        with anyio.fail_after(60):
            return await act()

    return anyio.run(go)


@pytest.fixture
def writer(home: HomePaths) -> Writer:
    return Writer.of(home)


def test_everything_that_happens_is_told_in_order_with_its_figures(writer: Writer) -> None:
    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home)) as messages:
            reading = await take_some_while(messages)
            return reading

    async def take_some_while(messages: Any) -> list[dict[str, Any]]:
        await anyio.to_thread.run_sync(writer.begin)
        found = await take_until(messages, "state", state="running")
        await anyio.to_thread.run_sync(writer.phase, "rollout")
        found += await take_until(messages, "phase", phase="rollout")
        await anyio.to_thread.run_sync(lambda: writer.step(1, cumulative_cost_usd=0.25, odd="x", student_entropy=1.5))
        await anyio.to_thread.run_sync(writer.end)
        return [*found, *await take_until(messages, "phase", state="completed")]

    found = play(act)
    assert [data["state"] for data in kept(found)] == ["queued", "preparing", "running", "running", "completed"]
    assert [data["sequence"] for data in kept(found)] == [1, 2, 3, 4, 5]
    metrics = next(data for data in found if data["kind"] == "metrics")
    assert metrics["step"] == 1 and metrics["total_steps"] == 30 and metrics["series"] == "train"
    assert metrics["metrics"] == {"kl_loss": 0.5, "cumulative_cost_usd": 0.25, "student_entropy": 1.5}
    ended = kept(found)[-1]
    assert ended["end_reason"] == "finished" and ended["message"] == "completed: Done." and ended["step"] == 1
    assert all(data["sequence"] <= later["sequence"] for data, later in itertools.pairwise(found))


def write_history(writer: Writer) -> list[str]:
    """Two runs whose events lie between each other."""
    writer.begin("one")
    epoch = writer.epoch
    writer.store.create("two", "distillation", {}, total_steps=5)
    for step in range(1, 6):
        writer.store.append_metrics("one", epoch, "train", {"step": step, "kl_loss": 0.1}, step=step)
        writer.store.add_event("two", "warning", f"warning {step}")
    return [event.run_id for event in writer.store.events(limit=1000)]


@settings(max_examples=25, deadline=None)
@given(after=st.integers(0, 20), run_id=st.sampled_from([None, "one", "two"]), page=st.integers(1, 5))
def test_a_reader_from_any_sequence_gets_exactly_what_it_misses(
    tmp_path_factory: pytest.TempPathFactory, after: int, run_id: str | None, page: int
) -> None:
    writer = Writer.of(HomePaths(tmp_path_factory.mktemp("home")))
    write_history(writer)
    everything = writer.store._database.read("SELECT sequence, run_id FROM events ORDER BY sequence")
    own = [record["sequence"] for record in everything if run_id in (None, record["run_id"])]
    wanted = [sequence for sequence in own if sequence > min(after, everything[-1]["sequence"])]

    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home), run_id, after) as messages:
            found = await take(messages, len(wanted)) if wanted else []
            writer.store.add_event(run_id or "one", "warning", "the end")
            return found + await take_until(messages, "warning", message="the end")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_module, "PAGE_EVENTS", page)
        found = kept(play(act))
    assert [data["sequence"] for data in found] == [*wanted, everything[-1]["sequence"] + 1]


def test_a_reader_that_comes_again_and_again_misses_nothing_while_a_run_goes_on(writer: Writer) -> None:
    """Each visit reads a little, leaves in the middle and comes back with the last sequence it saw."""
    writer.begin()

    def work() -> None:
        for step in range(1, 201):
            writer.step(step)
        writer.end()

    async def act() -> list[int]:
        seen, last, feed, visit, is_over = list[int](), 0, quick_feed(writer.home), 0, False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, work)
            while not is_over:
                visit += 1
                async with listening(feed, None if visit % 2 else "run", last) as messages:
                    for _ in range(1 + visit % 7):
                        (data,) = await take(messages, 1)
                        last = data["sequence"]
                        if data["kept"]:
                            seen.append(last)
                        is_over = data["state"] == "completed" and data["kept"]
                        if is_over:
                            break
        return seen

    seen = play(act)
    assert seen == list(range(1, 205))  # queued, preparing, running, 200 steps, completed


def test_a_reader_without_a_sequence_begins_with_how_things_stand(writer: Writer) -> None:
    writer.begin()
    writer.step(3)
    writer.phase("teacher", phase_detail="batch \x1b[31m2")

    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home)) as messages:
            return await take(messages, 1)

    (data,) = play(act)
    assert (data["kind"], data["kept"], data["phase"], data["step"], data["sequence"]) == (
        "phase",
        False,
        "teacher",
        3,
        4,
    )
    assert data["phase_detail"] == "batch \\x1b[31m2"


def test_one_run_is_told_of_itself_alone_and_also_when_it_has_ended(writer: Writer) -> None:
    writer.begin("old")
    writer.end("old")
    writer.begin("new")

    async def act() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        feed = quick_feed(writer.home)
        async with listening(feed) as all_runs, listening(feed, "old") as one_run:
            old = await take(one_run, 1)
            writer.step(1, "new")
            writer.store.add_event("old", "warning", "late")
            old += await take(one_run, 1)
            return old, await take_until(all_runs, "warning")

    old, everything = play(act)
    assert [(data["run_id"], data["kind"], data["state"]) for data in old] == [
        ("old", "phase", "completed"),
        ("old", "warning", "completed"),
    ]
    assert [(data["run_id"], data["kind"]) for data in everything] == [("new", "metrics"), ("old", "warning")]


def test_spending_is_told_with_its_warning(writer: Writer) -> None:
    writer.begin()
    ledger = Ledger(writer.home.database, month_limit_pico=100 * PICO_PER_USD)

    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home), "run") as messages:
            await take_until(messages, "phase")
            await anyio.to_thread.run_sync(lambda: ledger.open_budget("run", 10 * PICO_PER_USD))
            return await take_until(messages, "spend")

    data = play(act)[-1]
    assert data["cost"] == {"spent_usd": 0.0, "reserved_usd": 0.0, "limit_usd": 10.0}
    assert data["budget_warning"] is False and data["budget_exceeded"] is False and data["kept"] is False


def test_log_lines_come_escaped_and_whole_and_the_last_ones_before_the_end_too(writer: Writer) -> None:
    writer.begin()
    writer.log("before anyone listened\n")

    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home)) as messages:
            await take(messages, 1)
            writer.log("step 1 \x1b[2J</tool>\nhalf a ")
            found = await take(messages, 1)
            writer.log("line\n" + "x" * 5000 + "\n")
            writer.end()
            return found + await take_until(messages, "phase", state="completed")

    lines = [data for data in play(act) if data["kind"] == "log"]
    assert [data["message"][:20] for data in lines] == ["step 1 \\x1b[2J</tool>"[:20], "half a line", "x" * 20]
    assert len(lines[2]["message"]) < 500 and lines[2]["log_byte"] == writer.home.log("run").stat().st_size


def test_a_flood_of_log_is_cut_to_its_end_and_says_so(writer: Writer) -> None:
    writer.begin()

    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home)) as messages:
            await take(messages, 1)
            writer.log("a line of the flood\n" * 100_000 + "the last line\n")
            return await take_until(messages, "log", message="the last line")

    found = play(act)
    assert "are not shown here" in found[0]["message"] and len(found) < 500


def test_listening_makes_nothing_and_a_home_that_appears_later_is_told_from_its_first_event(home: HomePaths) -> None:
    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(home, idle_seconds=0.0)) as messages:
            with anyio.fail_after(20):
                assert await anext(messages) is None and not home.home.exists()
            await anyio.to_thread.run_sync(lambda: Writer.of(home).begin())
            return await take_until(messages, "state", state="running")

    assert [data["sequence"] for data in kept(play(act))] == [1, 2, 3]


def test_a_reader_that_falls_out_of_the_ring_goes_on_from_the_database(writer: Writer) -> None:
    writer.begin()
    count = 2 * RING_MESSAGES + 100

    def work() -> None:
        with writer.store._database.write() as connection:
            for number in range(count):
                events.add_event(connection, "run", "warning", f"{number}", utc_moment())

    async def act() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        feed = quick_feed(writer.home)
        async with listening(feed, after=0) as slow, listening(feed, after=0) as quick:
            first = await take(slow, 2)
            await anyio.to_thread.run_sync(work)
            told = await take_until(quick, "warning", message=f"{count - 1}")
            assert len(feed._ring) <= RING_MESSAGES
            return told, first + await take_until(slow, "warning", message=f"{count - 1}")

    told, late = play(act)
    for found in (told, late):
        assert [data["sequence"] for data in kept(found)] == list(range(1, count + 4))


def test_old_metrics_are_forgotten_and_the_oldest_kept_says_so(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT_METRICS", 16)
    monkeypatch.setattr(events, "PRUNE_EVERY_STEPS", 4)
    writer.begin(total_steps=2000)
    for step in range(1, 43):
        writer.step(step)
    records = writer.store._database.read("SELECT COUNT(*) AS n FROM events WHERE kind = 'metrics'")
    assert 16 <= records[0]["n"] <= 20

    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home), after=0) as messages:
            return await take_until(messages, "metrics", step=42)

    found = [data for data in play(act) if data["kind"] == "metrics"]
    assert found[0]["earlier_pruned"] is True and found[0]["step"] > 1
    assert all(data["earlier_pruned"] is None for data in found[1:])
    assert [data["step"] for data in found] == list(range(found[0]["step"], 43))


def test_nobody_looks_when_nobody_listens(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.begin()
    looks = 0
    real = Feed._look

    def counted(self: Feed, force: bool, asked: set[str]) -> Any:
        nonlocal looks
        looks += 1
        return real(self, force, asked)

    monkeypatch.setattr(Feed, "_look", counted)

    async def act() -> None:
        nonlocal looks
        feed = quick_feed(writer.home)
        async with listening(feed), listening(feed) as messages:
            await take(messages, 1)
            assert feed.readers == 2
        task_names = [task for task in anyio.get_running_tasks() if "_follow_home" in str(task.coro)]
        assert feed.readers == 0 and len(task_names) <= 1
        await anyio.sleep(0.01)
        looks = 0
        await anyio.sleep(0.02)
        assert looks == 0 and feed._task is None

    play(act)


def test_a_busy_database_delays_the_news_and_loses_none(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.begin()
    real, failures = following.runs_now, [StoreError("busy"), StoreError("busy")]

    def sometimes(*arguments: Any) -> Any:
        if failures and armed:
            raise failures.pop()
        return real(*arguments)

    armed = False
    monkeypatch.setattr(feed_module, "runs_now", sometimes)

    async def act() -> list[dict[str, Any]]:
        nonlocal armed
        async with listening(quick_feed(writer.home)) as messages:
            await take(messages, 1)
            armed = True
            writer.step(1)
            return await take_until(messages, "metrics")

    assert play(act)[-1]["step"] == 1 and not failures


def test_a_fault_of_the_feed_ends_its_readers_and_the_next_one_begins_anew(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.begin()

    async def act() -> None:
        feed = quick_feed(writer.home)
        with monkeypatch.context() as patch:
            async with listening(feed) as messages:
                await take(messages, 1)
                patch.setattr(feed_module, "of_event", lambda event: 1 / 0)
                writer.step(1)
                with pytest.raises(StoreError, match="unexpected error"):
                    await take(messages, 5)
        async with listening(feed) as messages:
            assert (await take(messages, 1))[0]["step"] == 1

    play(act)
    assert "ZeroDivisionError" in writer.home.log("server").read_text(encoding="utf-8")


def test_an_event_from_before_there_were_figures_still_tells_its_state(writer: Writer) -> None:
    writer.begin()
    with writer.store._database.write() as connection:
        connection.execute("UPDATE events SET figures = NULL")

    async def act() -> list[dict[str, Any]]:
        async with listening(quick_feed(writer.home), after=0) as messages:
            return await take(messages, 3)

    found = play(act)
    assert [data["state"] for data in found] == ["queued", "preparing", "running"]
    assert json.dumps(found)


def test_who_listens_is_only_asked_where_readers_come_and_go(writer: Writer) -> None:
    """A look happens in a thread; to go through what grows meanwhile would end the feed for everybody."""
    writer.begin()
    feed, threads = quick_feed(writer.home), set[int]()

    class Watched(Counter[str | None]):
        def __iter__(self) -> Iterator[str | None]:
            threads.add(threading.get_ident())
            return super().__iter__()

    feed._readers = Watched()

    async def act() -> None:
        async with listening(feed, "run") as messages:
            await take(messages, 1)

    play(act)
    assert threads == {threading.get_ident()}


def test_a_reader_that_has_left_is_forgotten_while_others_stay(writer: Writer) -> None:
    writer.begin()
    feed = quick_feed(writer.home)

    async def act() -> None:
        async with listening(feed):
            for number in range(3):
                async with listening(feed, f"gone-{number}"):
                    pass
            assert set(feed._readers) == {None}

    play(act)
