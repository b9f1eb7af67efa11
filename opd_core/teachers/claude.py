"""Claude as a teacher that writes text: a plain, synchronous front on asynchronous, paid calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import anthropic

from opd_core.config import RunConfig
from opd_core.guidance import (
    Guidance,
    Judgement,
    JudgePair,
    Preference,
    Reference,
    TeacherRequest,
    Templates,
    combine_preferences,
    parse_guidance,
    parse_lesson,
    parse_preference,
    parse_reference,
)
from opd_core.message_params import API_VERSION, DEFAULT_TEACHER, message_params, reply_token_limit
from opd_core.money.ledger import Ledger
from opd_core.money.pricing import PriceTable
from opd_core.money.response_cache import ResponseCache, request_key
from opd_core.teachers.asking import Asker
from opd_core.teachers.batch_client import BatchClient
from opd_core.teachers.batches import Batcher, HoldOwner
from opd_core.teachers.cashier import Cashier
from opd_core.teachers.completions import CompletionsLog
from opd_core.teachers.limiter import TokenLimiter
from opd_core.teachers.requests import Answer, Request
from opd_core.teachers.retrying import explain, of_a_free_look
from opd_core.teachers.running import CallRunner
from opd_core.teachers.transport import DEFAULT_BASE_URL, ApiKey, check_base_url, key_from_environment
from opd_core.teachers.waiting import OnWait, Seams, Waits
from opd_core.training.teaching import TeacherStats
from opd_core.types import Message, Rollout

STOP_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class ClaudeSettings:
    """What one run's teacher is.

    Attributes:
        owner: the worker instance (run and epoch) whose lock proves to the ledger that it lives.
        base_url: from settings.toml only; see `check_base_url`.
        max_tokens: of one reply, thinking included.
        prices_confirmed_on: the day a person compared the price table with the provider's page.
        stop_grace_seconds: how long calls under way may still end after a stop; cut off, they are charged in full.
    """

    run_id: str
    owner: str
    model: str = DEFAULT_TEACHER
    base_url: str = DEFAULT_BASE_URL
    templates: Templates = field(default_factory=Templates)
    max_tokens: int = 2_560
    timeout_seconds: float = 120.0
    max_concurrent: int = 5
    tokens_per_minute: int = 10_000
    cache_only: bool = False
    use_batches: bool = False
    prices_confirmed_on: date | None = None
    stop_grace_seconds: float = STOP_GRACE_SECONDS

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", check_base_url(self.base_url))

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        *,
        run_id: str,
        owner: str,
        base_url: str = DEFAULT_BASE_URL,
        prices_confirmed_on: date | None = None,
    ) -> ClaudeSettings:
        """The settings that a run's configuration stands for.

        Raises:
            ConfigError: the address is not allowed.
        """
        return cls(
            run_id=run_id,
            owner=owner,
            model=config.teacher_model_id or DEFAULT_TEACHER,
            base_url=base_url,
            templates=Templates(task=config.teacher_template, rule=config.teacher_system_prompt),
            max_tokens=reply_token_limit(config.rollout_max_tokens),
            timeout_seconds=config.teacher_timeout_seconds,
            max_concurrent=config.teacher_max_concurrent,
            tokens_per_minute=config.teacher_rate_limit_tpm,
            cache_only=config.teacher_cache_only,
            use_batches=config.teacher_batch_api,
            prices_confirmed_on=prices_confirmed_on,
        )


class ClaudeTeacher:
    """A `TextTeacher`. Calls of one batch run side by side; batches from several threads run one after another.

    Args:
        on_wait: told the reason and the seconds of a wait longer than a minute, and `("", 0.0)` at its end.
        should_stop: asked again and again; once true, waits end and no more calls are made.
        hold_owner: see `Ledger.recover`; other runs' batches are settled when their worker is dead.
        find_key: gives the API key as it is now, at each call; it is kept nowhere.
    """

    def __init__(
        self,
        settings: ClaudeSettings,
        *,
        ledger: Ledger,
        cache: ResponseCache,
        prices: PriceTable,
        completions: CompletionsLog,
        on_wait: OnWait,
        should_stop: Callable[[], bool],
        hold_owner: HoldOwner,
        find_key: Callable[[], str | None] = key_from_environment,
        seams: Seams | None = None,
    ) -> None:
        self.name = settings.model
        self._settings = settings
        self._seams = seams or Seams()
        self._key = ApiKey(find_key)
        self._waits = Waits(self._seams, on_wait, should_stop)
        self._hold_owner = hold_owner
        self._limiter = TokenLimiter(settings.tokens_per_minute, self._seams)
        self._cashier = Cashier(
            *(settings.run_id, settings.owner, ledger, cache, prices, completions, self._seams),
            prices_confirmed_on=settings.prices_confirmed_on,
            redact=self._key.redact,
        )
        self._calls = CallRunner(
            *(settings.base_url, self._key, settings.timeout_seconds, settings.stop_grace_seconds),
            *(self._waits, self._seams),
        )

    def references(
        self, conversations: Sequence[Sequence[Message]], *, sample_index: int = 0, may_wait: bool = False
    ) -> list[Reference | None]:
        """The answers the student should have given; by batches when they may wait and the settings say so."""
        templates = self._settings.templates
        requests = [
            self._request(templates.reference(conversation), parse_reference, sample_index)
            for conversation in conversations
        ]
        return self._ask(requests, may_wait=may_wait)

    def guidance(self, rollouts: Sequence[Rollout]) -> list[Guidance | None]:
        """What is right and wrong in each rollout; equal ones are asked for once."""
        templates = self._settings.templates
        return self._ask([self._request(templates.guidance(rollout), parse_guidance) for rollout in rollouts])

    def lesson(self, rollouts: Sequence[Rollout]) -> str | None:
        """One lesson from all the rollouts."""
        lesson: str | None = self._ask([self._request(self._settings.templates.lesson(rollouts), parse_lesson)])[0]
        return lesson

    def judge(self, pairs: Sequence[JudgePair]) -> list[Judgement | None]:
        """Which answer of each pair is better: two calls a pair, one in each order."""
        templates = self._settings.templates
        requests = [
            self._request(templates.judge(pair, swapped), _preference_parser(swapped))
            for pair in pairs
            for swapped in (False, True)
        ]
        found: list[Preference | None] = self._ask(requests)
        return [
            combine_preferences(straight, swapped) if straight is not None and swapped is not None else None
            for straight, swapped in zip(found[::2], found[1::2], strict=True)
        ]

    def check(self) -> None:
        """Ask once, for nothing, whether the key is accepted and the model exists; nothing in a cache-only run.

        Raises:
            TeacherUnavailableError: one of them is not so; with a `wake_in_seconds` it could not be found out now.
        """
        if self._settings.cache_only:
            return
        self._key.read()

        async def look(client: anthropic.AsyncAnthropic) -> None:
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    await client.models.with_raw_response.retrieve(self._settings.model)
            except Exception as error:
                raise of_a_free_look(explain(error, self._seams.now(), self._key)) from None

        self._calls.run(lambda client: self._calls.all([look(client)]))

    def stats(self) -> TeacherStats:
        """Counts since the teacher was made."""
        return self._cashier.stats()

    def _request(self, request: TeacherRequest, parse: Callable[[str], Any], sample_index: int = 0) -> Request:
        settings = self._settings
        params = message_params(request, settings.model, settings.max_tokens)
        others = {name: value for name, value in params.items() if name not in ("model", "messages")}
        key = request_key(
            *(settings.base_url, API_VERSION, settings.model, others, params["messages"], request.version, sample_index)
        )
        return Request(request.kind, key, params, request.version, sample_index, parse)

    def _ask(self, requests: Sequence[Request], *, may_wait: bool = False) -> list[Any]:
        """The values of requests, in order; equal requests are asked once."""
        unique = {request.key: request for request in requests}
        if not unique:
            return []

        async def ask_all(client: anthropic.AsyncAnthropic) -> dict[str, Answer]:
            settings = self._settings
            answers: dict[str, Answer] = {}
            if not settings.cache_only:
                batches = BatchClient(client, self._key, self._waits, self._seams, settings.timeout_seconds)
                batcher = Batcher(batches, self._key, self._cashier, self._waits, self._seams, self._hold_owner)
                ask = batcher.fetch if may_wait and settings.use_batches else batcher.take_up
                [answers] = await self._calls.all([ask(list(unique.values()))])
            asker = Asker(
                *(client, self._key, self._cashier, self._limiter, self._waits, self._seams),
                timeout_seconds=settings.timeout_seconds,
                max_concurrent=settings.max_concurrent,
                cache_only=settings.cache_only,
            )
            rest = [request for key, request in unique.items() if key not in answers]
            found = await self._calls.all([asker.ask(request) for request in rest])
            return answers | {request.key: answer for request, answer in zip(rest, found, strict=True)}

        answers = self._calls.run(ask_all)
        return [answers[request.key].value for request in requests]


def _preference_parser(swapped: bool) -> Callable[[str], Preference]:
    return lambda text: parse_preference(text, swapped)
