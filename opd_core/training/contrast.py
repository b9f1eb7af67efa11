"""`contrast`: the teacher's answer over the student's own fresh one, by DPO with a likelihood term.

For a prompt x with the teacher's answer w, the student's own answer l and a reference policy (the student at the
start of the round), with Δ_y = log π(y|x) − log π_ref(y|x):

    loss = −log σ(β·(Δ_w − Δ_l)) + α·NLL(w) / |w|

The first term is DPO (Rafailov et al., arXiv 2305.18290, Eq. 7); with fresh rejected answers in every round, as SODA
and ORPO-Distill (arXiv 2509.25100). DPO alone may lower the likelihood of *both* answers (Razin et al., arXiv
2410.08847); the second term (RPO, arXiv 2404.19733) holds the chosen one up, and `chosen_logprob` shows it.

The gradient is taken in two passes, so that any number of pairs fits in memory. With h = β·(Δ_w − Δ_l) known from the
first pass, ∂(−log σ(h)) = −β·σ(−h)·(∂log π(w) − ∂log π(l)): a weighted sum of likelihoods, answer by answer.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from opd_core.config import RunConfig
from opd_core.prompt_files import PromptExample
from opd_core.training.answers import AnswerRule
from opd_core.training.arrays import number
from opd_core.training.lora import Student
from opd_core.training.references import References
from opd_core.training.updates import AdapterOptimizer, IdPair, Ids, StepResult, answer_nlls, nll_gradient
from opd_core.types import Rollout

MAX_LENGTH_RATIO = 4.0
"""A pair whose answers differ more in length teaches length before it teaches anything else."""


class DpoTerms(NamedTuple):
    """DPO's loss for one pair, σ(−h) (how wrong the pair still is, 0 to 1), and h itself (the reward margin)."""

    loss: float
    pull: float
    margin: float


def dpo_terms(chosen: float, rejected: float, chosen_start: float, rejected_start: float, beta: float) -> DpoTerms:
    """DPO for one pair of answers, from the log-probability of each under the student and at the round's start."""
    margin = beta * ((chosen - chosen_start) - (rejected - rejected_start))
    small = math.exp(-abs(margin))  # never overflows
    pull = small / (1.0 + small) if margin >= 0 else 1.0 / (1.0 + small)
    return DpoTerms(math.log1p(small) + max(0.0, -margin), pull, margin)


@dataclass(frozen=True)
class Pair:
    """The teacher's and the student's answer to one prompt; `compared` False: only the likelihood term applies."""

    prompt: Ids
    chosen: Ids
    rejected: Ids
    compared: bool


@dataclass
class Dropped:
    """Why rollouts gave no pair (`without_reference`), or a pair without comparison, in one step."""

    without_reference: int = 0
    equal: int = 0
    length: int = 0


def make_pairs(
    rollouts: Sequence[Rollout],
    examples: Mapping[str, PromptExample],
    references: Mapping[str, tuple[str, Ids] | None],
    rule: AnswerRule,
) -> tuple[list[Pair], Dropped]:
    """Pair each rollout with its prompt's reference, text and ids; both mappings are by prompt_id.

    A student's answer that is as good as the reference is not pushed down, and one of very different length is not
    compared: the reference's likelihood term alone stays.
    """
    pairs, dropped = [], Dropped()
    for rollout in rollouts:
        reference = references[rollout.prompt_id]
        if reference is None:
            dropped.without_reference += 1
            continue
        text, ids = reference
        ratio = len(ids) / len(rollout.completion_ids)
        equal = rule.equals(rollout.completion, text, examples[rollout.prompt_id])
        far = not 1.0 / MAX_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO
        dropped.equal += equal
        dropped.length += far and not equal
        pairs.append(Pair(rollout.prompt_ids, ids, rollout.completion_ids, not equal and not far))
    return pairs, dropped


class ContrastUpdater:
    """SFT on the references first, then DPO in rounds; an `updates.Updater`.

    Args:
        start: a second copy of the student; holds the weights of the round's start.
        prompts_per_pass: training prompts; a round, and the SFT warm-up, last one pass unless configured.
    """

    def __init__(
        self, student: Student, start: Student, references: References, config: RunConfig, prompts_per_pass: int
    ) -> None:
        self.optimizer = AdapterOptimizer(student, config)
        self._student, self._start, self._references, self._config = student, start, references, config
        self._rule = AnswerRule.of(config)
        steps_per_pass = math.ceil(prompts_per_pass / config.batch_size)
        warmup = config.sft_warmup_steps
        self._warmup = min(steps_per_pass, config.num_training_steps // 2) if warmup is None else warmup
        self._round = config.dpo_round_steps or steps_per_pass
        self._round_start = 0
        """Step before which the reference policy was taken; 0: not yet."""

    def needs_rollouts(self, step: int) -> bool:
        """See `Updater.needs_rollouts`: the SFT warm-up needs none."""
        return step > self._warmup

    def update(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample], step: int) -> StepResult:
        """See `Updater.update`."""
        asked = time.perf_counter()
        self._references.texts(examples)
        result = StepResult(teacher_seconds=time.perf_counter() - asked)
        started = time.perf_counter()
        if self.needs_rollouts(step):
            self._begin_round(step)
            pairs = self._pairs(rollouts, examples, result)
            gradient = self._contrast(pairs, result) if pairs else None
        else:
            gradient = self._imitate(self._references.pairs(examples), result)
        result.update_seconds += time.perf_counter() - started
        if gradient is not None:
            self.optimizer.apply(gradient, step, result)
        return result

    def arrays(self) -> dict[str, mx.array]:
        """See `Updater.arrays`: the reference policy's adapter and when it was taken."""
        if not self._round_start:
            return {}
        return {"round_start": mx.array(self._round_start), **self._start.adapter_weights()}

    def load_arrays(self, arrays: dict[str, mx.array]) -> None:
        """See `Updater.load_arrays`."""
        weights = dict(arrays)
        if weights:
            self._round_start = round(number(weights.pop("round_start")))
            self._start.load_adapter_weights(weights)

    def _pairs(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample], result: StepResult) -> list[Pair]:
        references: dict[str, tuple[str, Ids] | None] = {}
        texts, ids = self._references.texts(examples), self._references.answer_ids(examples)
        for example, text, answer in zip(examples, texts, ids, strict=True):
            references[example.prompt_id] = None if text is None or answer is None else (text, answer)
        by_id = {example.prompt_id: example for example in examples}
        pairs, dropped = make_pairs(rollouts, by_id, references, self._rule)
        result.extras |= {
            "pairs_compared": sum(pair.compared for pair in pairs),
            "pairs_without_reference": dropped.without_reference,
            "pairs_equal": dropped.equal,
            "pairs_length_filtered": dropped.length,
        }
        return pairs

    def _begin_round(self, step: int) -> None:
        if not self._round_start or step >= self._round_start + self._round:
            self._start.load_adapter_weights(self._student.adapter_weights())
            self._round_start = step

    def _imitate(self, pairs: Sequence[IdPair], result: StepResult) -> object:
        """The warm-up: mean NLL per token of the references."""
        tokens = sum(len(answer) for _, answer in pairs)
        gradient, sums = nll_gradient(self._student, pairs, [1.0 / max(1, tokens)] * len(pairs))
        result.learned_from = len(pairs)
        result.sft_loss = result.total_loss = sum(sums) / max(1, tokens)
        if pairs:
            result.extras["chosen_logprob"] = -result.sft_loss
        return gradient

    def _contrast(self, pairs: Sequence[Pair], result: StepResult) -> object:
        """DPO over the compared pairs and the likelihood term over all; fills in `result`, returns the gradient."""
        answers = list({(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)})
        answers.sort()  # the order decides how floats add up
        now = dict(zip(answers, answer_nlls(self._student.scorer, answers), strict=True))
        start = dict(zip(answers, answer_nlls(self._start.scorer, answers), strict=True))
        weights = dict.fromkeys(answers, 0.0)
        beta, alpha = self._config.dpo_beta, self._config.nll_weight
        compared = [pair for pair in pairs if pair.compared]
        terms = []
        for pair in compared:
            chosen, rejected = (pair.prompt, pair.chosen), (pair.prompt, pair.rejected)
            term = dpo_terms(-now[chosen], -now[rejected], -start[chosen], -start[rejected], beta)
            weights[chosen] += beta * term.pull / len(compared)
            weights[rejected] -= beta * term.pull / len(compared)
            terms.append(term)
        for pair in pairs:
            weights[pair.prompt, pair.chosen] += alpha / (len(pairs) * len(pair.chosen))
        gradient, _ = nll_gradient(self._student, answers, [weights[answer] for answer in answers])
        result.learned_from = len(pairs)
        result.sft_loss = statistics.fmean(now[pair.prompt, pair.chosen] / len(pair.chosen) for pair in pairs)
        result.extras |= _figures(terms, pairs, now)
        result.total_loss = (result.extras["dpo_loss"] or 0.0) + alpha * result.sft_loss
        return gradient


def _figures(terms: Sequence[DpoTerms], pairs: Sequence[Pair], nlls: dict[IdPair, float]) -> dict[str, float | None]:
    """The step's figures; log-probabilities are nats per token, mean over the pairs, before the update."""
    return {
        "dpo_loss": statistics.fmean(term.loss for term in terms) if terms else None,
        "reward_margin": statistics.fmean(term.margin for term in terms) if terms else None,
        "chosen_logprob": -statistics.fmean(nlls[pair.prompt, pair.chosen] / len(pair.chosen) for pair in pairs),
        "rejected_logprob": -statistics.fmean(nlls[pair.prompt, pair.rejected] / len(pair.rejected) for pair in pairs),
    }
