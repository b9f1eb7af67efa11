"""Compare adapters: the same base model with each of them, on the same held-out prompts, against the same teacher."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from opd_core.adapter_files import check_adapter_fits
from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.config import RunConfig
from opd_core.errors import CompatibilityError, ConfigError, ModelFileError, OPDError, PathError
from opd_core.extractor import WHOLE, score
from opd_core.prompt_files import PromptExample
from opd_core.run_prompts import load_run_prompts
from opd_core.training.comparison_table import Primary, interval_entry, judged_rows, summary_text, table_rows
from opd_core.training.evaluator import Evaluation, Progress, evaluate
from opd_core.training.judging import judge_evaluations
from opd_core.training.lora import LoadedBase, load_base, make_student
from opd_core.training.methods import BuildTeacher
from opd_core.training.teaching import TextTeacher, TokenTeacher
from opd_core.training.tokenization import decode_completion
from opd_core.types import clean_text

SHOWN_SAMPLES = 4
MAX_SAMPLE_CHARACTERS = 400
TEACHER_ROWS = 64
EVALUATED, JUDGED = 0.7, 0.95  # shares of the work, when there is a judge


class ComparisonObserver(Protocol):
    """Who records the progress of a comparison; a `trainer.RunObserver` is one."""

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None: ...

    def log(self, message: str) -> None: ...

    def should_stop(self) -> bool: ...


def compare(
    spec: ComparisonSpec,
    config: RunConfig,
    build_teacher: BuildTeacher,
    observer: ComparisonObserver,
    judge: TextTeacher | None = None,
) -> dict[str, Any] | None:
    """Evaluate every candidate and put the figures side by side; None when stopped on the way.

    `config` is the resolved configuration of the run `spec.run_id`. The result is plain JSON data:
    `job_id, run_id, base_model, teacher {name, task_score}, held_out_prompts, primary_metric, reference` (the name
    of the candidate the others are measured against: the run's incoming adapter, else the base), `summary`,
    `rows [{name, adapter_path, error, task_score, reverse_kl, teacher_agreement_pct, completion_tokens,
    truncation_rate, repetition_rate, versus_reference, judged, verdict}]`, `judge` (see `judge_evaluations`, without
    its candidates; null without a judge), `samples [{prompt, reference, answers {name: text}, teacher}]`. A figure is
    `{mean, low, high, samples}`, a difference in `versus_reference` is `{mean, low, high, pairs, verdict}` by metric;
    intervals are at 95 %. A candidate that does not load has an `error` and nulls. Only a local teacher scores tokens
    and answers by itself: with another one, reverse KL and the teacher's columns are null.

    Args:
        judge: compares the answers blindly; its budget is its own.

    Raises:
        OPDError: base, teacher or prompts cannot be used, or no candidate loads.
    """
    if spec.max_samples is not None:
        config = config.model_copy(update={"eval_max_samples": spec.max_samples})
    examples = load_run_prompts(config).held_out
    observer.phase("preparing", "loading the base model and the teacher")
    base = load_base(Path(config.base_model_path))
    teacher = build_teacher(config, base) if config.teacher_kind == "local" else None
    found = _evaluate_all(spec, config, base, teacher, examples, observer, EVALUATED if judge else JUDGED)
    if found is None:
        return None
    evaluations, errors = found
    judged = None
    if judge is not None:
        judged = _judge(judge, evaluations, _reference(spec, config, evaluations), observer)
        if judged is None:
            return None
    observer.phase("evaluation", "the teacher's own answers", JUDGED)
    answers = _teacher_answers(teacher, base, examples, config, observer)
    if answers is None:
        return None
    name = teacher.name if teacher else config.teacher_model_id or config.teacher_kind
    return _result(spec, config, name, examples, evaluations, errors, answers, judged)


def _judge(
    judge: TextTeacher, evaluations: Mapping[str, Evaluation], reference: str, observer: ComparisonObserver
) -> dict[str, Any] | None:
    def progress(done: int, total: int) -> None:
        fraction = EVALUATED + (JUDGED - EVALUATED) * done / max(1, total)
        observer.phase("judging", f"{done} of {total} prompts", fraction)

    progress(0, len(evaluations[reference].samples))
    found = judge_evaluations(judge, evaluations, reference, progress, observer.should_stop)
    if found is not None and found["note"]:
        observer.log(found["note"])
    return found


def _evaluate_all(
    spec: ComparisonSpec,
    config: RunConfig,
    base: LoadedBase,
    teacher: TokenTeacher | None,
    examples: Sequence[PromptExample],
    observer: ComparisonObserver,
    share: float,
) -> tuple[dict[str, Evaluation], dict[str, str]] | None:
    """Evaluations by candidate, and for those that do not load the reason."""
    evaluations: dict[str, Evaluation] = {}
    errors: dict[str, str] = {}
    last_error: OPDError | None = None
    for number, candidate in enumerate(spec.candidates):

        def progress(done: int, total: int, name: str = candidate.name, number: int = number) -> None:
            fraction = share * (number + done / max(1, total)) / len(spec.candidates)
            observer.phase("evaluation", f"{name}: {done} of {total} prompts", fraction)

        progress(0, len(examples))
        try:
            evaluation = _evaluate_one(candidate, config, base, teacher, examples, observer, progress)
        except (CompatibilityError, ConfigError, ModelFileError, PathError) as error:
            last_error, errors[candidate.name] = error, clean_text(str(error), 600)
            observer.log(f"{candidate.name} could not be compared: {errors[candidate.name]}")
            continue
        if evaluation is None:
            return None
        evaluations[candidate.name] = evaluation
    if not evaluations and last_error is not None:
        raise last_error
    return evaluations, errors


def _evaluate_one(
    candidate: Candidate,
    config: RunConfig,
    base: LoadedBase,
    teacher: TokenTeacher | None,
    examples: Sequence[PromptExample],
    observer: ComparisonObserver,
    progress: Progress,
) -> Evaluation | None:
    adapter = Path(candidate.adapter_path) if candidate.adapter_path else None
    if adapter is not None:
        check_adapter_fits(adapter, base.path)
    return evaluate(
        make_student(base, adapter),
        teacher,
        examples,
        max_tokens=config.rollout_max_tokens,
        check=config.check,
        extractor=config.extractor,
        on_progress=progress,
        should_stop=observer.should_stop,
    )


def _teacher_answers(
    teacher: TokenTeacher | None,
    base: LoadedBase,
    examples: Sequence[PromptExample],
    config: RunConfig,
    observer: ComparisonObserver,
) -> list[str] | None:
    """A local teacher's own greedy answers: the ceiling of what it can teach. None when stopped on the way."""
    texts: list[str] = []
    if teacher is None:
        return texts
    for start in range(0, len(examples), TEACHER_ROWS):
        if observer.should_stop():
            return None
        part = examples[start : start + TEACHER_ROWS]
        decoded = teacher.generate([example.messages for example in part], config.rollout_max_tokens)
        texts += [decode_completion(base.tokenizer, answer.ids, base.stop_ids) for answer in decoded]
    return texts


def _result(
    spec: ComparisonSpec,
    config: RunConfig,
    teacher_name: str,
    examples: Sequence[PromptExample],
    evaluations: Mapping[str, Evaluation],
    errors: Mapping[str, str],
    teacher_answers: Sequence[str],
    judged: dict[str, Any] | None,
) -> dict[str, Any]:
    primary = _primary(config, judged is not None)
    reference = _reference(spec, config, evaluations)
    figures = judged_rows(table_rows(evaluations, reference, primary, spec.seed), judged, primary)
    empty = dict.fromkeys(next(iter(figures.values())))
    teacher_score = _teacher_score(config, examples, teacher_answers)
    return {
        "job_id": spec.job_id,
        "run_id": spec.run_id,
        "base_model": config.base_model_path,
        "teacher": {"name": teacher_name, "task_score": teacher_score},
        "held_out_prompts": len(examples),
        "primary_metric": primary,
        "reference": reference,
        "summary": summary_text(figures, reference, primary, len(examples), teacher_score),
        "judge": judged and {name: value for name, value in judged.items() if name != "candidates"},
        "rows": [
            {
                "name": candidate.name,
                "adapter_path": candidate.adapter_path,
                "error": errors.get(candidate.name),
                **figures.get(candidate.name, empty),
            }
            for candidate in spec.candidates
        ],
        "samples": _samples(spec, examples, evaluations, teacher_answers),
    }


def _primary(config: RunConfig, is_judged: bool) -> Primary | None:
    """What the verdict goes by; None when nothing here tells better from worse."""
    if config.check is not None:
        return "task_score"
    if config.teacher_kind == "local":
        return "reverse_kl"
    return "judgement" if is_judged else None


def _reference(spec: ComparisonSpec, config: RunConfig, evaluations: Mapping[str, Evaluation]) -> str:
    """The candidate the others are measured against, of those that were evaluated."""
    loaded = [candidate for candidate in spec.candidates if candidate.name in evaluations]
    for wanted in (config.student_adapter_path, None):
        for candidate in loaded:
            if candidate.adapter_path == wanted:
                return candidate.name
    return loaded[0].name


def _teacher_score(
    config: RunConfig, examples: Sequence[PromptExample], answers: Sequence[str]
) -> dict[str, Any] | None:
    if config.check is None or not answers:
        return None
    extractor = config.extractor or WHOLE
    paired = zip(answers, examples, strict=True)
    return interval_entry([score(config.check, answer, example, extractor) for answer, example in paired])


def _samples(
    spec: ComparisonSpec,
    examples: Sequence[PromptExample],
    evaluations: Mapping[str, Evaluation],
    teacher_answers: Sequence[str],
) -> list[dict[str, Any]]:
    """A few prompts drawn at random, so that nobody picked them, with everybody's answer."""
    chosen = sorted(random.Random(spec.seed).sample(range(len(examples)), min(SHOWN_SAMPLES, len(examples))))
    return [
        {
            "prompt": _shown(examples[index].prompt),
            "reference": None if (text := examples[index].reference) is None else _shown(text),
            "answers": {name: _shown(done.samples[index].completion) for name, done in evaluations.items()},
            "teacher": _shown(teacher_answers[index]) if teacher_answers else None,
        }
        for index in chosen
    ]


def _shown(text: str) -> str:
    return clean_text(text, MAX_SAMPLE_CHARACTERS)
