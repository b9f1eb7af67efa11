"""What requests to a paid teacher would cost, reckoned with the very functions that reserve and price real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from functools import lru_cache
from math import ceil

from opd_core.config import RunConfig
from opd_core.control.preflight_paid import utc_today
from opd_core.guidance import JudgePair, TeacherRequest, Templates
from opd_core.message_params import API_VERSION, DEFAULT_TEACHER, body_bytes, message_params, reply_token_limit
from opd_core.money.pricing import Price, PriceTable, prompt_upper_bound, reservation_pico
from opd_core.money.response_cache import ResponseCache, request_key
from opd_core.settings import Settings
from opd_core.types import Message, Rollout

CHARACTERS_PER_TOKEN = 4
BYTES_PER_TOKEN = 3.0  # of the teacher's tokenizer, JSON escapes included
TEACHER_TOKENS_PER_TOKEN = 1.3  # the teacher's tokenizer makes more tokens of a text than most
JSON_AND_THOUGHT_TOKENS = 60
GUIDANCE_TOKENS = 300
SHORT_REPLY_TOKENS = 150


@dataclass
class Bill:
    """Sums over requests; amounts are picodollars. `batch_*`: with references in batches, at half the price."""

    requests: float = 0.0
    cache_hits: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    expected_pico: int = 0
    worst_pico: int = 0
    batch_expected_pico: int = 0
    batch_worst_pico: int = 0
    largest_pico: int = 0
    has_references: bool = False


class Biller:
    """Prices the requests of one run.

    Args:
        completion_tokens: expected length of the student's answers, in its own tokens.
    """

    def __init__(
        self, config: RunConfig, settings: Settings, completion_tokens: float, today: date | None = None
    ) -> None:
        self.model = config.teacher_model_id or DEFAULT_TEACHER
        self.prices = PriceTable.load()
        self._today = today or utc_today()
        self._base_url = settings.teacher_base_url.rstrip("/")
        self._cache = ResponseCache(settings.home.database)
        self._templates = Templates(task=config.teacher_template, rule=config.teacher_system_prompt)
        self._max_tokens = reply_token_limit(config.rollout_max_tokens)
        self._longest, self._usual = config.rollout_max_tokens, completion_tokens
        self._price = lru_cache(maxsize=None)(self._price_of_size)

    def references(self, bill: Bill, conversations: Sequence[Sequence[Message]], share: float = 1.0) -> None:
        """One call a conversation, unless its reply is stored; `share`: of them that will probably be needed."""
        output = TEACHER_TOKENS_PER_TOKEN * self._usual + JSON_AND_THOUGHT_TOKENS
        for conversation in conversations:
            request = self._templates.reference(conversation)
            bill.has_references = True
            if self._cache.get(self._key(request)) is not None:
                bill.requests += share
                bill.cache_hits += 1
                continue
            size = self._size(request)
            self._add(bill, size, size, output, 1, share, can_wait=True)

    def guidance(self, bill: Bill, conversation: Sequence[Message], count: int) -> None:
        """As many answers of the student to one conversation, each looked at by the teacher."""
        usual, longest = (self._size(self._templates.guidance(answer)) for answer in self._answers(conversation))
        output = TEACHER_TOKENS_PER_TOKEN * self._usual + GUIDANCE_TOKENS
        self._add(bill, usual, longest, output, count)

    def lesson(self, bill: Bill, conversations: Sequence[Sequence[Message]], answers_each: int, count: int) -> None:
        """As many lessons, each from answers to these conversations."""
        both = [self._answers(conversation) for conversation in conversations for _ in range(answers_each)]
        usual = self._size(self._templates.lesson([answer for answer, _ in both]))
        longest = self._size(self._templates.lesson([answer for _, answer in both]))
        self._add(bill, usual, longest, SHORT_REPLY_TOKENS, count)

    def judgement(self, bill: Bill, conversation: Sequence[Message]) -> None:
        """One pair of answers, judged in both orders."""
        (usual, longest), turns = self._answers(conversation), tuple(conversation)
        sizes = [
            self._size(self._templates.judge(JudgePair(turns, answer.completion, answer.completion), swapped=False))
            for answer in (usual, longest)
        ]
        self._add(bill, sizes[0], sizes[1], SHORT_REPLY_TOKENS, 2)

    def _add(
        self,
        bill: Bill,
        usual_bytes: int,
        longest_bytes: int,
        output_tokens: float,
        count: int,
        share: float = 1.0,
        *,
        can_wait: bool = False,
    ) -> None:
        usual, longest = self._price(usual_bytes), self._price(longest_bytes)
        read, written = usual_bytes / BYTES_PER_TOKEN, min(output_tokens, self._max_tokens)
        expected = count * share * (read * usual.input_pico + written * usual.output_pico)
        worst = reservation_pico(longest, longest_bytes, self._max_tokens)
        bill.requests += count * share
        bill.input_tokens += count * share * read
        bill.output_tokens += count * share * written
        bill.expected_pico += ceil(expected)
        bill.worst_pico += count * worst
        factor = usual.batch_factor if can_wait else Fraction(1)
        bill.batch_expected_pico += ceil(expected * factor)
        bill.batch_worst_pico += count * reservation_pico(longest, longest_bytes, self._max_tokens, can_wait)
        bill.largest_pico = max(bill.largest_pico, worst)

    def _price_of_size(self, size: int) -> Price:
        return self.prices.price_for(self.model, prompt_upper_bound(size), self._today)

    def _size(self, request: TeacherRequest) -> int:
        return body_bytes(message_params(request, self.model, self._max_tokens))

    def _key(self, request: TeacherRequest) -> str:
        """As `ClaudeTeacher` makes it for its first sample; a test compares the two."""
        params = message_params(request, self.model, self._max_tokens)
        others = {name: value for name, value in params.items() if name not in ("model", "messages")}
        return request_key(self._base_url, API_VERSION, self.model, others, params["messages"], request.version, 0)

    def _answers(self, conversation: Sequence[Message]) -> tuple[Rollout, Rollout]:
        """A usual and a longest answer of the student."""
        usual, longest = ("x" * ceil(CHARACTERS_PER_TOKEN * tokens) for tokens in (self._usual, self._longest))
        blank = Rollout("", 0, "", tuple(conversation), (), "", (), (), "stop", 1.0, 1.0, 0, 0, "")
        return replace(blank, completion=usual), replace(blank, completion=longest)
