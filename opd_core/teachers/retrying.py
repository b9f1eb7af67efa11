"""What became of one attempt, who pays for it, and whether there is another one.

The client library retries nothing; this is the only place that does. The decision goes by the provider's stable
`error_code` and by the status, never by `x-should-retry` or the class of an error: a monthly cap arrives as a 429.

    outcome    what                                                      another attempt
    released   429 and 529, no connection                                after a pause, up to MAX_ATTEMPTS
    released   400 401 402 403 404 413 422, spend caps                   none
    forfeited  500 502 503 504, timeout, connection broken in mid-call   one
    forfeited  anything else that is not a message                       none
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

import anthropic
import httpx2
from tenacity import AsyncRetrying, RetryCallState

from opd_core.errors import TeacherUnavailableError
from opd_core.teachers.transport import ApiKey
from opd_core.teachers.waiting import Seams, Waits
from opd_core.types import clean_text

MAX_ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 600.0  # a longer wait gives the machine back to the queue
TRY_AGAIN_SECONDS = 300.0  # when all attempts failed for a passing reason
MAX_RETRY_AFTER_SECONDS = 32 * 86400.0  # no header makes a run wait longer than a month

RELEASED_STATUSES = frozenset({400, 401, 402, 403, 404, 413, 422, 429, 529})
BUSY_STATUSES = frozenset({429, 529})
UNCERTAIN_STATUSES = frozenset({500, 502, 503, 504})
MONTHLY_CAPS = frozenset({"enforced_spend_limit_reached"})
OTHER_CAPS = frozenset({"contract_spend_limit_reached", "linked_organization_spend_limit_reached"})
_NEVER_CONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

Outcome = Literal["released", "forfeited"]
Kind = Literal["busy", "unreachable", "uncertain", "final"]
T = TypeVar("T")


class CallFailed(Exception):
    """One attempt gave no message.

    Attributes:
        outcome: who pays: "released" nobody, "forfeited" the whole reservation.
        kind: "busy" and "unreachable" pass by themselves, "uncertain" may have been billed, "final" stays as it is.
        retry_after: seconds the provider asked to wait, or None.
        wake_in_seconds: for a final one: when it may be different, or None.
        status: of the HTTP reply, or None without one.
    """

    def __init__(
        self,
        message: str,
        outcome: Outcome,
        kind: Kind,
        *,
        retry_after: float | None = None,
        wake_in_seconds: float | None = None,
        request_id: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.kind = kind
        self.retry_after = retry_after
        self.wake_in_seconds = wake_in_seconds
        self.request_id = request_id
        self.status = status

    def as_unavailable(self) -> TeacherUnavailableError:
        """The error for the caller of a paid call when there is no other attempt."""
        wake = self.wake_in_seconds
        if self.kind in ("busy", "unreachable"):
            wake = max(self.retry_after or 0.0, TRY_AGAIN_SECONDS)
        # an uncertain outcome was charged in full: coming back by itself would spend the budget on nothing
        advice = "" if wake is not None or self.outcome == "released" else " Look into it, then resume the run."
        return TeacherUnavailableError(str(self) + advice, wake_in_seconds=wake)


def of_a_free_look(failure: CallFailed) -> TeacherUnavailableError:
    """Only what the server refused is a finding; that it failed or fell silent tells nothing, and costs nothing."""
    if failure.outcome == "released":
        return failure.as_unavailable()
    answered = f"status {failure.status}" if failure.status else "no whole answer"
    return TeacherUnavailableError(
        f"The teacher's server did not say whether key and model are good ({answered}).",
        wake_in_seconds=TRY_AGAIN_SECONDS,
    )


def explain(error: Exception, now: datetime, key: ApiKey) -> CallFailed:
    """What an exception of the client library means. Nothing of it is kept: it holds the request."""
    if isinstance(error, anthropic.APIStatusError):
        return _explain_status(error, now, key)
    cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) else error
    if isinstance(cause, TeacherUnavailableError):  # the key went away after the reservation: nothing was sent
        return CallFailed(str(cause), "released", "final")
    if isinstance(cause, _NEVER_CONNECTED):
        return CallFailed("The teacher's server cannot be reached. Is the network there?", "released", "unreachable")
    if isinstance(cause, TimeoutError | httpx2.TimeoutException):
        return CallFailed(
            "The teacher did not answer within teacher_timeout_seconds; the call is charged in full.",
            "forfeited",
            "uncertain",
        )
    if not isinstance(cause, anthropic.AnthropicError | httpx2.HTTPError | OSError):
        return CallFailed(
            f"A fault of this program ended a call to the teacher ({type(cause).__name__}); it is charged in full.",
            "forfeited",
            "final",
        )
    return CallFailed(
        f"The connection to the teacher broke in mid-call ({type(cause).__name__}); the call is charged in full.",
        "forfeited",
        "uncertain",
    )


def _explain_status(error: anthropic.APIStatusError, now: datetime, key: ApiKey) -> CallFailed:
    status, code = error.status_code, key.redact(error.error_code) if error.error_code else None
    said = clean_text(key.redact(str(error.api_message or "")), 300)
    outcome: Outcome = "released" if status in RELEASED_STATUSES else "forfeited"
    text, kind, wake = _meaning(status, code, said, now)
    message = f"{text} (status {status}{f', {clean_text(code, 60)}' if code else ''}" + (f": {said})" if said else ")")
    return CallFailed(
        message,
        outcome,
        kind,
        retry_after=retry_after_seconds(error.response.headers, now) if kind == "busy" else None,
        wake_in_seconds=wake,
        request_id=key.redact(error.request_id) if error.request_id else None,
        status=status,
    )


def _meaning(status: int, code: str | None, said: str, now: datetime) -> tuple[str, Kind, float | None]:
    """A sentence, the kind, and for a final one the seconds until it may be different."""
    # the workspace's own limit comes as a bare 400; its text is the only sign
    if code in MONTHLY_CAPS or (status == 400 and "usage limits" in said.lower()):
        return "The provider's spend limit for this month is reached", "final", seconds_to_next_month(now)
    if code in OTHER_CAPS:
        return "The provider's spend limit of the account is reached", "final", None
    if status in BUSY_STATUSES:
        return ("The teacher is overloaded" if status == 529 else "The teacher's rate limit is reached"), "busy", None
    if status in UNCERTAIN_STATUSES:
        return "The teacher's server failed; the call is charged in full", "uncertain", None
    if status in (408, 409):
        return "The teacher's server gave the request up; the call is charged in full", "final", None
    advice = {
        401: "The API key is not accepted. Put a valid ANTHROPIC_API_KEY where it is set (the server's environment, "
        "which wins, or OPD_HOME/.env) and resume the run",
        402: "The account cannot pay. Settle that in the provider's console and resume the run",
        403: "The API key may not use this model. Give it the right or choose another teacher_model_id",
        404: "The teacher model does not exist or is retired. Choose another teacher_model_id",
        413: "A request to the teacher is too large. Use shorter prompts or a smaller rollout_max_tokens",
    }
    return advice.get(status, "The teacher's server refused the request"), "final", None


def retry_after_seconds(headers: httpx2.Headers, now: datetime) -> float | None:
    """What `retry-after-ms` or `retry-after` (seconds or a date) asks for; None without a readable one."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return min(seconds, MAX_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def seconds_to_next_month(now: datetime) -> float:
    """Until the first of the next month, UTC."""
    first = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first - now).total_seconds()


class RetryPolicy:
    """Decides for one request; counts its attempts."""

    def __init__(self, random: Callable[[], float], uncertain_attempts: int) -> None:
        self._random = random
        self._uncertain_left = uncertain_attempts

    def again(self, state: RetryCallState) -> bool:
        """Whether another attempt follows the one that ended."""
        failure = _failure(state)
        if failure is None or failure.kind == "final":
            return False
        if failure.kind == "uncertain":
            self._uncertain_left -= 1
            return self._uncertain_left > 0
        return state.attempt_number < MAX_ATTEMPTS and (failure.retry_after or 0.0) <= LONGEST_WAIT_SECONDS

    def seconds(self, state: RetryCallState) -> float:
        """How long to wait: what the provider asked for, at least a growing pause with some chance in it."""
        failure = _failure(state)
        growing = FIRST_PAUSE_SECONDS * 2.0 ** (state.attempt_number - 1) * (1.0 + 0.25 * self._random())
        return max(growing, (failure.retry_after if failure else None) or 0.0)


def _failure(state: RetryCallState) -> CallFailed | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error if isinstance(error, CallFailed) else None


async def with_retries(
    attempt: Callable[[], Awaitable[T]], waits: Waits, seams: Seams, *, uncertain_attempts: int = 2
) -> T:
    """Run `attempt` until it gives something or the policy says no.

    Args:
        attempt: raises CallFailed when it gave nothing; makes a reservation of its own each time.
        uncertain_attempts: how many attempts in all may end without anybody knowing what became of them.

    Raises:
        CallFailed: the last one.
        TeacherStoppedError: the run was asked to stop during a pause.
    """
    policy = RetryPolicy(seams.random, uncertain_attempts)

    async def pause(seconds: float) -> None:
        await waits.pause(seconds, "Waiting for the teacher: its server is busy or cannot be reached.")

    async def once() -> T:  # tenacity awaits only what is visibly a coroutine function
        return await attempt()

    return await AsyncRetrying(retry=policy.again, wait=policy.seconds, sleep=pause, reraise=True)(once)
