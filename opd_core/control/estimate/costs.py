"""The figures of a paid estimate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodCost:
    """The teacher's price of one method; "probe" is `auto`'s first phase, and `start_probe`'s whole job.

    `calls` are those to the provider, `cache_hits` requests that a stored reply answers. `batch_*`: with
    teacher_batch_api, when every entry of a batch is carried out; `None` where no request can wait for a batch. An
    entry that is not carried out is asked for again at the full price, so `worst_usd` is the bound then too.
    `usual_call_pico` is what the largest call holds when texts are of usual length; `sends_answers`: the student's own
    answers are sent, whose length is not known before.
    """

    method: str
    guidance_level: str | None
    calls: int
    cache_hits: int
    input_tokens: int
    output_tokens: int
    expected_usd: float
    worst_usd: float
    worst_pico: int
    batch_expected_usd: float | None
    batch_worst_usd: float | None
    largest_call_usd: float
    usual_call_pico: int = 0
    sends_answers: bool = False


@dataclass(frozen=True)
class PaidEstimate:
    """What the teacher would cost. `chosen` is the configuration's own method; `methods` are all, for comparison.

    `pays_usd` is what the chosen method is expected to cost, with batches when the configuration uses them;
    `pays_at_most_usd` is its worst case, which batches do not lower.
    `uncovered_usd` is by how much the expected cost exceeds what may be spent; `coverage` says in a sentence what the
    budget will and will not cover.
    """

    model: str
    prices_version: str
    chosen: MethodCost
    methods: tuple[MethodCost, ...]
    pays_usd: float
    pays_at_most_usd: float
    budget_usd: float
    month_left_usd: float
    uncovered_usd: float
    coverage: str
    notes: tuple[str, ...]
