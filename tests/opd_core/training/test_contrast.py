"""`contrast`: DPO's value and gradient by hand, which pairs are compared, rounds, the chosen answer's likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.extractor import ExtractorSpec, RegexCheck
from opd_core.training.answers import AnswerRule
from opd_core.training.contrast import ContrastUpdater, Pair, dpo_terms, make_pairs
from opd_core.training.lora import LoadedBase, NewAdapter, Student, make_student
from opd_core.training.references import References
from opd_core.training.step import draw_rollouts
from opd_core.training.updates import StepResult
from tests.opd_core.training.bigram import answer_gradient, answer_logprob, bigram_student, table_of
from tests.opd_core.training.conftest import example, rollout
from tests.opd_core.training.scripted_teacher import ScriptedTeacher

ALPHA, BETA = 0.3, 0.5
PAIRS = [
    Pair((3, 4), (5, 6, 0), (1, 1, 1, 0), compared=True),
    Pair((3, 4), (5, 6, 0), (2, 0), compared=True),
    Pair((2,), (1, 0), (6, 5, 0), compared=False),
]


def settings(**more: object) -> RunConfig:
    values = {"base_model_path": "m", "prompts_path": "p.txt", "method": "contrast", "dpo_beta": BETA}
    return parse_config({**values, "nll_weight": ALPHA, "sft_warmup_steps": 0, **more})


@dataclass
class Capture:
    """Stands where the optimizer is and keeps the gradients."""

    gradients: list[Any] = field(default_factory=list)

    def apply(self, gradients: object, step: int, result: StepResult) -> None:
        self.gradients.append(gradients)


def bigram_updater(now: int = 1, start: int = 2) -> ContrastUpdater:
    references = References(None, None, 9, AnswerRule())
    return ContrastUpdater(bigram_student(table_of(now)), bigram_student(table_of(start)), references, settings(), 4)


def test_the_dpo_loss_of_one_pair_by_hand() -> None:
    # Δ_w = −2 − (−2.5) = 0.5, Δ_l = −3 − (−2) = −1, h = 0.1 · 1.5 = 0.15
    terms = dpo_terms(-2.0, -3.0, -2.5, -2.0, beta=0.1)
    assert terms.margin == pytest.approx(0.15)
    assert terms.loss == pytest.approx(0.62095705, rel=1e-7)  # log(1 + e^−0.15)
    assert terms.pull == pytest.approx(0.46257015, rel=1e-7)  # 1 / (1 + e^0.15)


def test_the_pull_is_the_derivative_of_the_loss() -> None:
    step = 1e-6
    for chosen, rejected in ((-2.0, -3.0), (-9.0, -1.0), (-1.0, -30.0)):
        up, down = (dpo_terms(chosen + sign * step, rejected, -4.0, -4.0, 0.7).loss for sign in (1, -1))
        terms = dpo_terms(chosen, rejected, -4.0, -4.0, 0.7)
        assert (up - down) / (2 * step) == pytest.approx(-0.7 * terms.pull, rel=1e-6)


def test_dpo_at_its_limits() -> None:
    assert dpo_terms(-5.0, -7.0, -5.0, -7.0, 0.1) == (math.log(2.0), 0.5, 0.0)  # nothing has moved yet
    far_right, far_wrong = dpo_terms(0.0, -1e6, 0.0, 0.0, 1.0), dpo_terms(-1e6, 0.0, 0.0, 0.0, 1.0)
    assert far_right[:2] == (0.0, 0.0)
    assert far_wrong[:2] == (1e6, 1.0)


def test_value_and_gradient_of_a_step_equal_float64_arithmetic() -> None:
    updater, result = bigram_updater(), StepResult()
    got = updater._contrast(PAIRS, result)
    now, start = table_of(1), table_of(2)
    want, dpo, nll = np.zeros_like(now), 0.0, 0.0
    for pair in PAIRS:
        chosen, rejected = (pair.prompt, pair.chosen), (pair.prompt, pair.rejected)
        if pair.compared:
            moved = [answer_logprob(now, answer) - answer_logprob(start, answer) for answer in (chosen, rejected)]
            h = BETA * (moved[0] - moved[1])
            dpo += math.log1p(math.exp(-h)) / 2
            slope = -BETA / (1.0 + math.exp(h)) / 2
            want += slope * (answer_gradient(now, chosen) - answer_gradient(now, rejected))
        nll -= answer_logprob(now, chosen) / len(pair.chosen) / 3
        want -= ALPHA * answer_gradient(now, chosen) / len(pair.chosen) / 3
    assert result.extras["dpo_loss"] == pytest.approx(dpo, rel=1e-5)
    assert result.sft_loss == pytest.approx(nll, rel=1e-5) and result.extras["chosen_logprob"] == -result.sft_loss
    assert result.total_loss == pytest.approx(dpo + ALPHA * nll, rel=1e-5)
    assert np.allclose(np.array(got["table"]), want, atol=2e-6)  # type: ignore[index]


def test_rows_that_predict_no_answer_id_get_no_gradient() -> None:
    pair = Pair((1, 2, 3), (4, 0), (5, 0), compared=True)
    got = bigram_updater()._contrast([pair], StepResult())
    moved = np.abs(np.array(got["table"])).max(axis=-1) > 0  # type: ignore[index]
    assert moved.tolist() == [False, False, False, True, True, True, False]


REFERENCES = {"id_one": ("a fine reply", (60, 61, 62, 2)), "id_two": None}
EXAMPLES = {f"id_{name}": example(name) for name in ("one", "two")}


def test_pairs_leave_out_what_should_not_be_pushed_down() -> None:
    rule = AnswerRule(RegexCheck(kind="regex", pattern="ok.*"))
    rollouts = [
        rollout("one", "bad", (70, 71, 2)),
        rollout("two", "bad", (70, 71, 2)),
        rollout("one", "a fine reply", (60, 61, 62, 2)),
        rollout("one", "ok so", (50, 51, 2)),
        rollout("one", "b" * 16, (*(70,) * 16, 2)),
    ]
    pairs, dropped = make_pairs(rollouts, EXAMPLES, REFERENCES, rule)
    assert [(pair.rejected[0], pair.compared) for pair in pairs] == [(70, True), (60, False), (50, False), (70, False)]
    assert (dropped.without_reference, dropped.equal, dropped.length) == (1, 2, 1)


def test_an_answer_with_the_reference_s_final_answer_is_as_good_as_the_reference() -> None:
    rule = AnswerRule(None, ExtractorSpec(kind="last_number"))
    references = {"id_one": ("it is 7", (60, 2))}
    rollouts = [rollout("one", "so 7.0", (70, 2)), rollout("one", "so 8", (71, 2)), rollout("one", "none", (72, 2))]
    pairs, _ = make_pairs(rollouts, EXAMPLES, references, rule)
    assert [pair.compared for pair in pairs] == [False, True, True]


@pytest.fixture
def student(base: LoadedBase) -> Student:
    return make_student(base, None, NewAdapter(4, 2.0))


TRAIN = [example(f"prompt {index}") for index in range(3)]


def tiny_updater(student: Student, teacher: ScriptedTeacher, config: RunConfig) -> ContrastUpdater:
    start = make_student(student.base, None, NewAdapter(4, 2.0))
    references = References(teacher, student.base.tokenizer, 64, AnswerRule.of(config))
    return ContrastUpdater(student, start, references, config, prompts_per_pass=len(TRAIN))


def run_steps(updater: ContrastUpdater, student: Student, config: RunConfig, steps: int) -> list[StepResult]:
    results = []
    for step in range(1, steps + 1):
        rollouts = draw_rollouts(student, TRAIN, config, step, lambda: False) if updater.needs_rollouts(step) else []
        results.append(updater.update(rollouts, TRAIN, step))
    return results


TOY = {"learning_rate": 2e-3, "rollout_max_tokens": 12, "num_rollouts_per_prompt": 2, "batch_size": 3}


def test_the_chosen_likelihood_is_logged_and_does_not_fall_over_fifty_steps(student: Student) -> None:
    config = settings(**TOY, dpo_beta=0.1, nll_weight=0.2, dpo_round_steps=10)
    updater = tiny_updater(student, ScriptedTeacher(lambda prompt: f"{prompt}!"), config)
    results = run_steps(updater, student, config, 50)
    chosen = [float(result.extras["chosen_logprob"] or 0.0) for result in results]
    assert chosen[-1] > chosen[0] + 1.0
    assert all(value >= chosen[0] - 0.05 for value in chosen)
    assert max(chosen) - chosen[-1] < 0.1 * (chosen[-1] - chosen[0])
    assert all(result.applied and result.kl_loss is None and not result.values for result in results)


@pytest.mark.parametrize(("alpha", "falls"), [(0.0, True), (2.0, False)])
def test_the_likelihood_term_holds_up_what_dpo_alone_would_push_down(alpha: float, falls: bool) -> None:
    # Both answers use 5 → 0. DPO sees only their difference, 5 → 5, and raising that takes from 5 → 0.
    table = np.full((7, 7), -9.0)
    table[3, 5], table[5, 5], table[5, 0] = 0.0, math.log(0.6), math.log(0.4)
    student, config = bigram_student(table), settings(nll_weight=alpha, learning_rate=1e-2)
    updater = ContrastUpdater(student, bigram_student(table), References(None, None, 9, AnswerRule()), config, 4)
    pair, results = Pair((3,), (5, 5, 0), (5, 0), compared=True), [StepResult() for _ in range(9)]
    for step, result in enumerate(results, start=1):
        updater.optimizer.apply(updater._contrast([pair], result), step, result)
    chosen = [float(result.extras["chosen_logprob"] or 0.0) for result in results]
    margins = [float(result.extras["reward_margin"] or 0.0) for result in results]
    assert alpha > 0 or margins == sorted(margins)  # DPO itself is content with the fall
    assert (chosen[-1] < chosen[0] - 1e-4) == falls


def test_the_warm_up_imitates_and_writes_nothing(student: Student) -> None:
    config, teacher = settings(**TOY, sft_warmup_steps=3), ScriptedTeacher()
    updater = tiny_updater(student, teacher, config)
    results = run_steps(updater, student, config, 5)
    assert [updater.needs_rollouts(step) for step in (1, 3, 4)] == [False, False, True]
    assert ["dpo_loss" in result.extras for result in results] == [False, False, False, True, True]
    losses = [result.sft_loss for result in results[:3]]
    assert losses == sorted(losses, reverse=True) and results[0].learned_from == 3
    assert teacher.count("reference") == 3  # one call a prompt, whatever the steps


def test_the_warm_up_lasts_one_pass_and_at_most_half_the_run(student: Student) -> None:
    for steps, prompts_in_file, want in ((100, 30, 10), (6, 30, 3)):
        config = settings(batch_size=3, num_training_steps=steps, sft_warmup_steps=None)
        updater = ContrastUpdater(student, student, References(None, None, 9, AnswerRule()), config, prompts_in_file)
        assert [step for step in range(1, 101) if not updater.needs_rollouts(step)] == list(range(1, want + 1))


def test_the_reference_policy_is_the_student_at_the_start_of_each_round(student: Student) -> None:
    config = settings(**TOY, dpo_round_steps=2)
    updater = tiny_updater(student, ScriptedTeacher(), config)
    margins = [result.extras["reward_margin"] for result in run_steps(updater, student, config, 4)]
    assert margins[0] == margins[2] == pytest.approx(0.0, abs=1e-6)
    assert margins[1] and margins[3] and min(margins[1], margins[3]) > 1e-3


def test_a_round_goes_on_after_a_restart(student: Student) -> None:
    config = settings(**TOY, dpo_round_steps=9)
    updater = tiny_updater(student, ScriptedTeacher(), config)
    run_steps(updater, student, config, 3)
    again = tiny_updater(student, ScriptedTeacher(), config)
    again.load_arrays(updater.arrays())
    rollouts = draw_rollouts(student, TRAIN, config, 4, lambda: False)
    weights = student.adapter_weights()
    first = updater.update(rollouts, TRAIN, 4).extras["reward_margin"]
    student.load_adapter_weights(weights)
    assert again.update(rollouts, TRAIN, 4).extras["reward_margin"] == first
    assert tiny_updater(student, ScriptedTeacher(), config).arrays() == {}


def test_without_any_reference_nothing_is_learnt_and_nothing_moves(student: Student) -> None:
    config = settings(**TOY)
    updater = tiny_updater(student, ScriptedTeacher(lambda prompt: None), config)
    before = student.adapter_weights()
    (result,) = run_steps(updater, student, config, 1)
    assert (result.applied, result.finite, result.learned_from) == (False, True, 0)
    assert result.extras["pairs_without_reference"] == 6
    assert all(bool(mx.array_equal(value, before[name])) for name, value in student.adapter_weights().items())
