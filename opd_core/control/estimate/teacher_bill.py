"""What requests to a paid teacher would cost, reckoned with the very functions that reserve and price real ones.

Two figures: what is expected, from texts of the usual length, and the worst case, which no reservation of the ledger
for such a request exceeds. For a reference the two sizes are one; where the student's own answers are sent, the worst
case takes rollout_max_tokens of its tokenizer's longest tokens for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from math import ceil
from statistics import fmean

from opd_core.config import RunConfig
from opd_core.control.preflight.paid import utc_today
from opd_core.control.prompts.token_counts import CHARACTERS_PER_TOKEN
from opd_core.guidance import JudgePair, TeacherRequest, Templates
from opd_core.message_params import API_VERSION, DEFAULT_TEACHER, body_bytes, message_params, reply_token_limit
from opd_core.money.pricing import HIDDEN_PROMPT_TOKENS, Price, PriceTable, prompt_upper_bound, reservation_pico
from opd_core.money.response_cache import ResponseCache, request_key
from opd_core.settings import Settings
from opd_core.types import FinishReason, Message, Rollout

BYTES_PER_TOKEN = 3.0  # of the teacher's tokenizer, JSON escapes included
TEACHER_TOKENS_PER_TOKEN = 1.3  # the teacher's tokenizer makes more tokens of a text than most
JSON_AND_THOUGHT_TOKENS = 60
GUIDANCE_TOKENS = 300
SHORT_REPLY_TOKENS = 150
COMMA_BYTES = 2  # between two attempts
_ENDS: tuple[FinishReason, FinishReason] = ("stop", "length")  # usual and longest: "false" is a byte more than "true"


@dataclass
class Bill:
    """Sums over requests; amounts are picodollars.

    `worst_pico` bounds the sum of the reservations. `batch_*`: with references in batches, at half the price, when the
    provider carries out every entry; one that it does not is released and asked again at the full price, so
    `worst_pico` bounds these too. `usual_call_pico`, `largest_pico`: most that one call holds, usually and at worst.
    """

    requests: float = 0.0
    cache_hits: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    expected_pico: int = 0
    worst_pico: int = 0
    batch_expected_pico: int = 0
    batch_worst_pico: int = 0
    usual_call_pico: int = 0
    largest_pico: int = 0
    can_wait: bool = False
    sends_answers: bool = False


class Biller:
    """Prices the requests of one run.

    Args:
        completion_tokens: expected length of the student's answers, in its own tokens.
        token_bytes: the most bytes of a request's body that one of them can add, see `answer_bytes`.
    """

    def __init__(
        self,
        config: RunConfig,
        settings: Settings,
        completion_tokens: float,
        token_bytes: int,
        today: date | None = None,
    ) -> None:
        self.model = config.teacher_model_id or DEFAULT_TEACHER
        self.prices = PriceTable.load()
        self._today = today or utc_today()
        self._base_url = settings.teacher_base_url.rstrip("/")
        self._cache = ResponseCache(settings.home.database)
        self._templates = Templates(task=config.teacher_template, rule=config.teacher_system_prompt)
        self._max_tokens = reply_token_limit(config.rollout_max_tokens)
        self._usual_tokens = completion_tokens
        self._usual_answer = ceil(CHARACTERS_PER_TOKEN * completion_tokens)
        self._longest_answer = token_bytes * config.rollout_max_tokens
        self._price = lru_cache(maxsize=None)(self._price_of_size)

    def references(
        self, bill: Bill, conversations: Sequence[Sequence[Message]], share: float = 1.0, *, can_wait: bool = False
    ) -> None:
        """One call a conversation, unless its reply is stored.

        Args:
            share: of them that will probably be needed.
            can_wait: all of them are asked for in a batch before they are needed, when there are batches.
        """
        bill.can_wait = bill.can_wait or (can_wait and bool(conversations))
        output = TEACHER_TOKENS_PER_TOKEN * self._usual_tokens + JSON_AND_THOUGHT_TOKENS
        for conversation in conversations:
            request = self._templates.reference(conversation)
            if self._cache.get(self._key(request)) is not None:
                bill.requests += share
                bill.cache_hits += 1
                continue
            size = self._size(request)
            self._add(bill, size, size, output, 1, share, can_wait=can_wait)

    def guidance(self, bill: Bill, conversation: Sequence[Message], count: int) -> None:
        """As many answers of the student to one conversation, each looked at by the teacher."""
        output = TEACHER_TOKENS_PER_TOKEN * self._usual_tokens + GUIDANCE_TOKENS
        usual, cut = (self._size(self._templates.guidance(_blank(conversation, end))) for end in _ENDS)
        self._add_with_answers(bill, (usual, cut), 1, output, count)

    def lesson(self, bill: Bill, conversations: Sequence[Sequence[Message]], answers: int, count: int) -> None:
        """As many lessons, each from as many answers: usually to prompts of mean length, at worst to the longest."""
        none = self._size(self._templates.lesson([]))
        each = [
            [self._size(self._templates.lesson([_blank(conversation, end)])) - none for conversation in conversations]
            for end in _ENDS
        ]
        rest = none + (answers - 1) * COMMA_BYTES
        sizes = (rest + ceil(answers * fmean(each[0])), rest + answers * max(each[1]))
        self._add_with_answers(bill, sizes, answers, SHORT_REPLY_TOKENS, count)

    def judgement(self, bill: Bill, conversation: Sequence[Message]) -> None:
        """One pair of answers, judged in both orders."""
        size = self._size(self._templates.judge(JudgePair(tuple(conversation), "", ""), swapped=False))
        self._add_with_answers(bill, (size, size), 2, SHORT_REPLY_TOKENS, 2)

    def _add_with_answers(
        self, bill: Bill, sizes: tuple[int, int], answers: int, output_tokens: float, count: int
    ) -> None:
        """`sizes`: of the request without its answers, usual and at most."""
        bill.sends_answers = True
        usual, longest = sizes[0] + answers * self._usual_answer, sizes[1] + answers * self._longest_answer
        self._add(bill, usual, max(usual, longest), output_tokens, count)

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
        usual = self._price(usual_bytes)
        most_sent = self._most_sent(usual)
        longest_bytes = longest_bytes if most_sent is None else min(longest_bytes, most_sent)
        longest = self._price(longest_bytes)
        read, written = usual_bytes / BYTES_PER_TOKEN, min(output_tokens, self._max_tokens)
        all_expected = count * (read * usual.input_pico + written * usual.output_pico)
        expected = share * all_expected
        worst = reservation_pico(longest, longest_bytes, self._max_tokens)
        bill.requests += count * share
        bill.input_tokens += count * share * read
        bill.output_tokens += count * share * written
        bill.expected_pico += ceil(expected)
        bill.worst_pico += count * worst
        bill.batch_expected_pico += ceil(all_expected * usual.batch_factor if can_wait else expected)
        bill.batch_worst_pico += count * reservation_pico(longest, longest_bytes, self._max_tokens, can_wait)
        usual_call = reservation_pico(usual, usual_bytes, self._max_tokens)
        bill.usual_call_pico = max(bill.usual_call_pico, usual_call)
        bill.largest_pico = max(bill.largest_pico, worst)

    def _price_of_size(self, size: int) -> Price:
        return self.prices.price_for(self.model, prompt_upper_bound(size), self._today)

    def _most_sent(self, price: Price) -> int | None:
        """The longest request that has a price, where there is one; a longer one is refused before it is reserved."""
        most = next(row.max_prompt_tokens for row in self.prices.models if row.name == price.model)
        return None if most is None else most - HIDDEN_PROMPT_TOKENS

    def _size(self, request: TeacherRequest) -> int:
        return body_bytes(message_params(request, self.model, self._max_tokens))

    def _key(self, request: TeacherRequest) -> str:
        """As `ClaudeTeacher` makes it for its first sample; a test compares the two."""
        params = message_params(request, self.model, self._max_tokens)
        others = {name: value for name, value in params.items() if name not in ("model", "messages")}
        return request_key(self._base_url, API_VERSION, self.model, others, params["messages"], request.version, 0)


def _blank(conversation: Sequence[Message], finish_reason: FinishReason) -> Rollout:
    """A rollout without its text; a body's size is the sum over its texts, so an answer's bytes are added to it."""
    return Rollout("", 0, "", tuple(conversation), (), "", (), (), finish_reason, 1.0, 1.0, 0, 0, "")
