"""Held-out evidence: what the student writes on prompts it never trained on, and what the teacher thinks of it.

Answers are greedy, so the same weights give the same answers and two adapters are compared prompt by prompt. The
reverse KL and the agreement are means over the tokens of those answers.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from opd_core.extractor import WHOLE, CheckSpec, ExtractorSpec, score
from opd_core.paths import utc_now
from opd_core.prompt_files import PromptExample
from opd_core.training.arrays import number
from opd_core.training.decoding import decoding_model
from opd_core.training.lanes import lanes
from opd_core.training.logprobs import pack
from opd_core.training.lora import Student
from opd_core.training.losses import TokenDivergence, score_divergence
from opd_core.training.micro_batches import Size, micro_batches
from opd_core.training.rollouts import Decoded, decode, repetition_rate
from opd_core.training.sampling import Sampling, random_key
from opd_core.training.teaching import TokenTeacher
from opd_core.training.tokenization import decode_completion, prompt_ids
from opd_core.training.updates import Ids, answer_nlls
from opd_core.types import Rollout

ROWS_PER_BATCH = 64
SCORING_TOKENS_PER_BATCH = 8192
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SampleScore:
    """One held-out answer.

    Attributes:
        reverse_kl: mean nats per token from student to teacher; None without a token-level teacher.
        agreement: share of tokens where both have the same most likely token, 0 to 1; None likewise.
        task_score: the check's score, 0 to 1; None without a check.
        reference_nll: nats per token of the teacher's reference under the student; None without references.
    """

    prompt_id: str
    prompt: str
    completion: str
    completion_tokens: int
    finish_reason: str
    repetition_rate: float
    reverse_kl: float | None
    agreement: float | None
    task_score: float | None
    reference_nll: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All held-out answers of one adapter; `rollouts` holds their ids, parallel to `samples`."""

    samples: tuple[SampleScore, ...]
    rollouts: tuple[Rollout, ...]

    def summary(self) -> dict[str, float | int | None]:
        """The figures of an evaluation line; reverse KL and agreement are means over tokens, the rest over prompts."""
        weights = [sample.completion_tokens for sample in self.samples]
        agreement = _weighted([sample.agreement for sample in self.samples], weights)
        return {
            "held_out_prompts": len(self.samples),
            "task_score": _mean([sample.task_score for sample in self.samples]),
            "reverse_kl": _weighted([sample.reverse_kl for sample in self.samples], weights),
            "teacher_agreement_pct": None if agreement is None else 100.0 * agreement,
            "reference_nll": _mean([sample.reference_nll for sample in self.samples]),
            "completion_tokens_mean": statistics.fmean(weights),
            "truncation_rate": statistics.fmean(sample.finish_reason == "length" for sample in self.samples),
            "repetition_rate": statistics.fmean(sample.repetition_rate for sample in self.samples),
        }


def evaluate(
    student: Student,
    teacher: TokenTeacher | None,
    examples: Sequence[PromptExample],
    *,
    max_tokens: int,
    check: CheckSpec | None = None,
    extractor: ExtractorSpec | None = None,
    references: Mapping[str, Ids] | None = None,
    step: int = 0,
    on_progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Let the student answer every example greedily and score the answers; None when stopped on the way.

    Args:
        references: ids of the teacher's answers by prompt_id, for `reference_nll`.
    """
    samples: list[SampleScore] = []
    rollouts: list[Rollout] = []
    for start in range(0, len(examples), ROWS_PER_BATCH):
        part = examples[start : start + ROWS_PER_BATCH]
        prompts = [prompt_ids(student.base.tokenizer, example.messages) for example in part]
        model = decoding_model(student.model)
        decoded = decode(
            model, prompts, 1, Sampling(max_tokens, 0.0), student.base.stop_ids, random_key(0), should_stop
        )
        del model
        if not decoded:
            return None
        on_progress(start + len(part) // 2, len(examples))
        written = _rollouts(student, part, prompts, decoded, max_tokens, step)
        scores = _score_tokens(student, teacher, written) if teacher else [(None, None)] * len(written)
        nlls = _reference_nlls(student, written, references or {})
        for example, rollout, (kl, agreement), nll in zip(part, written, scores, nlls, strict=True):
            samples.append(replace(_sample(example, rollout, kl, agreement, check, extractor), reference_nll=nll))
        rollouts += written
        on_progress(start + len(part), len(examples))
    return Evaluation(tuple(samples), tuple(rollouts))


def _rollouts(
    student: Student,
    examples: Sequence[PromptExample],
    prompts: Sequence[tuple[int, ...]],
    decoded: Sequence[Decoded],
    max_tokens: int,
    step: int,
) -> list[Rollout]:
    now = utc_now()
    return [
        Rollout(
            rollout_id=f"val_{step:06d}_{example.prompt_id}",
            step=step,
            prompt_id=example.prompt_id,
            messages=example.messages,
            prompt_ids=prompt,
            completion=decode_completion(student.base.tokenizer, item.ids, student.base.stop_ids),
            completion_ids=item.ids,
            sampling_logprobs=item.logprobs,
            finish_reason="stop" if item.stopped else "length",
            temperature=0.0,
            top_p=1.0,
            max_tokens=max_tokens,
            seed=0,
            timestamp=now,
        )
        for example, prompt, item in zip(examples, prompts, decoded, strict=True)
    ]


def _score_tokens(
    student: Student, teacher: TokenTeacher, rollouts: Sequence[Rollout]
) -> list[tuple[float | None, float | None]]:
    """Mean reverse KL and agreement of each rollout."""
    width = min(student.scorer.vocab_size, teacher.vocab_size)
    results: list[tuple[float | None, float | None]] = [(None, None)] * len(rollouts)
    sizes = [
        Size(
            rollout.prompt_ids,
            max(len(rollout.prompt_ids), teacher.context_length(rollout.messages)),
            len(rollout.completion_ids),
        )
        for rollout in rollouts
    ]

    def part(group: Sequence[int]) -> TokenDivergence:
        members = [rollouts[index] for index in group]
        batch = pack([member.prompt_ids for member in members], [member.completion_ids for member in members])
        return score_divergence(
            student.scorer.states(batch),
            lambda states: student.scorer.head(states)[..., :width],
            teacher.states([member.messages for member in members], [member.completion_ids for member in members]),
            lambda states: teacher.head(states)[..., :width],
            1.0,
            student.scorer.positions_per_chunk,
        )

    groups = micro_batches(sizes, SCORING_TOKENS_PER_BATCH, lanes(student.model).count)
    for group, terms in zip(
        groups, lanes(student.model).run([functools.partial(part, group) for group in groups]), strict=True
    ):
        offset = 0
        for index in group:
            own = slice(offset, offset + len(rollouts[index].completion_ids))
            results[index] = (number(mx.mean(terms.value[own])), number(mx.mean(terms.agreement[own])))
            offset = own.stop
    return results


def _reference_nlls(student: Student, rollouts: Sequence[Rollout], references: Mapping[str, Ids]) -> list[float | None]:
    """Nats per token of each prompt's reference."""
    known = {rollout.prompt_id: rollout.prompt_ids for rollout in rollouts if rollout.prompt_id in references}
    pairs = [(prompt, references[prompt_id]) for prompt_id, prompt in known.items()]
    sums = dict(zip(known, answer_nlls(student.scorer, pairs), strict=True))
    return [
        sums[rollout.prompt_id] / len(references[rollout.prompt_id]) if rollout.prompt_id in sums else None
        for rollout in rollouts
    ]


def _sample(
    example: PromptExample,
    rollout: Rollout,
    reverse_kl: float | None,
    agreement: float | None,
    check: CheckSpec | None,
    extractor: ExtractorSpec | None,
) -> SampleScore:
    return SampleScore(
        prompt_id=example.prompt_id,
        prompt=example.prompt,
        completion=rollout.completion,
        completion_tokens=len(rollout.completion_ids),
        finish_reason=rollout.finish_reason,
        repetition_rate=repetition_rate(rollout.completion_ids),
        reverse_kl=reverse_kl,
        agreement=agreement,
        task_score=None if check is None else score(check, rollout.completion, example, extractor or WHOLE),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def _weighted(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs) if pairs else None
