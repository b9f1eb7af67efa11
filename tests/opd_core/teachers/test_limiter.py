from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from opd_core.errors import TeacherStoppedError
from opd_core.teachers.limiter import TokenLimiter
from opd_core.teachers.waiting import Seams, Waits
from tests.opd_core.teachers.claude_kit import START, FakeTime


class Desk:
    """A limiter with its waits, on a clock of its own."""

    def __init__(self, tokens_per_minute: int) -> None:
        self.time = FakeTime()
        self.stop = False
        self.announced: list[tuple[str, float]] = []
        seams = Seams(self.time.clock, self.time.now, self.time.sleep, lambda: 0.0)
        self.limiter = TokenLimiter(tokens_per_minute, seams)
        self.waits = Waits(seams, lambda *wait: self.announced.append(wait), lambda: self.stop)

    def acquire(self, *amounts: int) -> list[float]:
        """When each of these calls, made at once, may go."""
        went: list[tuple[int, float]] = []

        async def one(place: int, tokens: int) -> None:
            await self.limiter.acquire(tokens, self.waits)
            went.append((place, self.time.seconds))

        run(lambda: asyncio.gather(*(one(place, tokens) for place, tokens in enumerate(amounts))))
        assert [place for place, _ in went] == list(range(len(amounts)))
        return [moment for _, moment in went]

    def observe(self, kind: str, left: int, reset_in: float) -> None:
        reset = (self.time.now() + timedelta(seconds=reset_in)).isoformat().replace("+00:00", "Z")
        name = f"anthropic-ratelimit-{kind}"
        self.limiter.observe({f"{name}-remaining": str(left), f"{name}-reset": reset})


def run(work: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return await work()

    return asyncio.run(main())


def test_calls_within_the_rate_go_at_once() -> None:
    assert Desk(6_000).acquire(1_000, 2_000, 3_000) == [0.0, 0.0, 0.0]


def test_calls_above_the_rate_wait_in_order_until_the_minute_has_room() -> None:
    moments = Desk(6_000).acquire(6_000, 1_000, 1_000)
    assert moments == pytest.approx([0.0, 10.0, 20.0], abs=1.0)


def test_over_a_long_time_the_rate_is_kept() -> None:
    moments = Desk(6_000).acquire(*[500] * 60)
    assert moments[-1] == pytest.approx((60 * 500 - 6_000) / 100, abs=5.0)


def test_a_call_larger_than_a_minute_goes_when_the_minute_is_full() -> None:
    assert Desk(1_000).acquire(5_000) == [0.0]
    assert Desk(1_000).acquire(5_000, 100)[1] == pytest.approx(4_100 / (1_000 / 60), abs=1.0)


def test_a_long_queue_is_a_visible_wait() -> None:
    desk = Desk(1_000)
    desk.acquire(1_000, 900, 900)
    reason, seconds = desk.announced[0]
    assert "tokens per minute" in reason
    assert seconds == pytest.approx(108.0, abs=2.0)
    assert desk.announced[-1] == ("", 0.0)


def test_a_short_wait_is_not_announced() -> None:
    desk = Desk(6_000)
    desk.acquire(6_000, 1_000)
    assert desk.announced == []


def test_a_stop_ends_the_wait_within_a_second() -> None:
    desk = Desk(60)

    async def waiting() -> None:
        await desk.limiter.acquire(60, desk.waits)
        await desk.limiter.acquire(60, desk.waits)

    async def main() -> None:
        task = asyncio.create_task(waiting())
        while desk.time.seconds < 5.0:
            await asyncio.sleep(0)
        desk.stop = True
        with pytest.raises(TeacherStoppedError):
            await task

    asyncio.run(main())
    assert desk.time.seconds < 6.0


def test_a_call_that_used_less_than_expected_makes_room() -> None:
    desk = Desk(6_000)
    desk.acquire(6_000)
    desk.limiter.correct(6_000, 1_000)
    assert desk.acquire(5_000) == [0.0]


def test_a_call_that_used_more_than_expected_holds_the_next_back() -> None:
    desk = Desk(6_000)
    desk.acquire(1_000)
    desk.limiter.correct(1_000, 6_000)
    assert desk.acquire(1_000) == pytest.approx([10.0], abs=1.0)


def test_the_output_is_estimated_from_the_replies_so_far() -> None:
    limiter = Desk(6_000).limiter
    assert limiter.estimate(300, 2_000) == 2_100
    limiter.learn(80)
    assert limiter.estimate(300, 2_000) == 200
    limiter.learn(10_000)
    assert limiter.estimate(300, 2_000) == 2_100


@pytest.mark.parametrize("kind", ["requests", "tokens", "input-tokens", "output-tokens"])
def test_when_the_provider_says_nothing_is_left_calls_wait_for_its_reset(kind: str) -> None:
    desk = Desk(10**9)
    desk.observe(kind, 0, 30.0)
    assert desk.acquire(100) == pytest.approx([30.0], abs=0.5)


def test_what_the_provider_says_is_left_is_counted_down() -> None:
    desk = Desk(10**9)
    desk.observe("tokens", 250, 30.0)
    assert desk.acquire(100, 100, 100) == pytest.approx([0.0, 0.0, 30.0], abs=0.5)
    other = Desk(10**9)
    other.observe("requests", 2, 30.0)
    assert other.acquire(100, 100, 100) == pytest.approx([0.0, 0.0, 30.0], abs=0.5)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"anthropic-ratelimit-tokens-remaining": "0"},
        {"anthropic-ratelimit-tokens-remaining": "none", "anthropic-ratelimit-tokens-reset": START.isoformat()},
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "soon"},
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2026-11-23T11:59:00Z"},
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2027-11-23T12:00:00Z"},
    ],
)
def test_headers_that_are_missing_unreadable_past_or_absurd_hold_nothing_back(headers: dict[str, str]) -> None:
    desk = Desk(10**9)
    desk.limiter.observe(headers)
    assert desk.acquire(100) == [0.0]


def test_a_hold_lets_nothing_through() -> None:
    desk = Desk(10**9)
    desk.limiter.hold(12.0)
    assert desk.acquire(1, 1) == pytest.approx([12.0, 12.0], abs=0.5)


def test_several_waits_at_once_are_one_announcement() -> None:
    desk = Desk(10**9)

    async def main() -> None:
        pauses: list[Coroutine[Any, Any, None]] = [desk.waits.pause(100.0, "busy"), desk.waits.pause(70.0, "busy")]
        await asyncio.gather(*pauses)

    asyncio.run(main())
    assert desk.announced == [("busy", 100.0), ("", 0.0)]
