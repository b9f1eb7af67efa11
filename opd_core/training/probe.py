"""The probe: does guidance make *this* student better, and which kind of it? Measured before anything is trained.

For every level of guidance, from cheap to rich, the student answers the same held-out prompts without and with it,
both greedily. What guidance cannot give the student in its context, `coach` cannot train into its weights (a student
of 135M parameters followed examples on 24 of 24 prompts, and a lesson or a critique on none). The recommendation:
`coach` at the level with the largest gap whose paired 95 % interval excludes zero, else `contrast`.

Answers are scored by the run's check, or without one by the text teacher's blind judgement of each pair of answers.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from opd_core.config import RunConfig
from opd_core.errors import BudgetExceededError, BudgetFrozenError, ConfigError
from opd_core.guidance import JudgePair
from opd_core.intervals import Interval, Verdict, differing, paired_bootstrap, verdict
from opd_core.prompt_files import PromptExample
from opd_core.training.answers import AnswerRule
from opd_core.training.coach_update import LEVELS, BuildCoach, GuidanceLevel, GuidedTeacher
from opd_core.training.evaluator import evaluate
from opd_core.training.lora import Student, initial_student, load_base
from opd_core.training.references import References
from opd_core.training.step import batch_for_step, draw_rollouts
from opd_core.training.teaching import TextTeacher
from opd_core.training.tokenization import decode_completion
from opd_core.types import Rollout, clean_text

Measure = Literal["task_score", "judgement"]


class ProbeObserver(Protocol):
    """Who records the progress of a probe; a `trainer.RunObserver` is one."""

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None: ...

    def log(self, message: str) -> None: ...

    def should_stop(self) -> bool: ...


@dataclass(frozen=True)
class LevelResult:
    """One level of guidance.

    Attributes:
        score_without, score_with: mean over the pairs: the check's score, or the share of judgements won (a tie is
            half). None when the level could not be measured; `note` then says why.
        gap: with minus without, per prompt, with its paired interval.
        verdict: "better" when the interval excludes zero.
        cost_usd, calls, cache_hits: what this level took from the teacher.
    """

    level: GuidanceLevel
    score_without: float | None = None
    score_with: float | None = None
    gap: Interval | None = None
    pairs: int = 0
    verdict: Verdict | None = None
    completion_tokens_mean: float | None = None
    cost_usd: float = 0.0
    calls: int = 0
    cache_hits: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class ProbeReport:
    """What the probe found and what it recommends; `reason` is for people.

    `is_complete` is false when the budget ended before all levels were tried.
    """

    measure: Measure
    held_out_prompts: int
    method: Literal["coach", "contrast"]
    guidance_level: GuidanceLevel | None
    reason: str
    cost_usd: float
    levels: tuple[LevelResult, ...] = field(default_factory=tuple)
    is_complete: bool = True

    def as_record(self) -> dict[str, Any]:
        """Plain JSON data; an interval is `{mean, low, high}`, an open end null."""
        record = asdict(self)
        for entry, level in zip(record["levels"], self.levels, strict=True):
            if level.gap is not None:
                entry["gap"] = {
                    name: value if math.isfinite(value) else None for name, value in level.gap._asdict().items()
                }
        record["levels"] = list(record["levels"])
        return record


class Probe:
    """Tries the levels of guidance on one student.

    Args:
        train_examples: where examples and the shared lesson come from.
        held_out: on which the levels are tried; at most `probe_max_prompts` of them.
    """

    def __init__(
        self,
        config: RunConfig,
        student: Student,
        text_teacher: TextTeacher,
        build_coach: BuildCoach,
        references: References,
        train_examples: Sequence[PromptExample],
        held_out: Sequence[PromptExample],
        observer: ProbeObserver,
    ) -> None:
        self._config, self._student, self._text, self._observer = config, student, text_teacher, observer
        self._build_coach, self._references = build_coach, references
        self._train, self._held_out = train_examples, list(held_out)[: config.probe_max_prompts]
        self._rule = AnswerRule.of(config)
        self._own: tuple[Rollout, ...] = ()

    def run(self, levels: Sequence[GuidanceLevel] = LEVELS) -> ProbeReport | None:
        """Measure the levels in their order; None when stopped on the way.

        Levels that the budget does not reach are left out with a note.

        Raises:
            OPDError: the teacher cannot be asked.
        """
        spent_before = self._text.stats().cost_usd
        self._observer.phase("probe", "the student's own answers", 0.0)
        own = evaluate(
            self._student, None, self._held_out,
            max_tokens=self._config.rollout_max_tokens, should_stop=self._observer.should_stop,
        )  # fmt: skip
        if own is None:
            return None
        self._own = own.rollouts
        results: list[LevelResult] = []
        is_complete = True
        for number, level in enumerate(levels):
            self._observer.phase("probe", f"guidance by {level}", (number + 1) / (len(levels) + 1))
            try:
                found = self._measure(level)
            except (BudgetExceededError, BudgetFrozenError) as error:
                if not any(result.gap is not None for result in results):
                    raise  # nothing was measured, so there is nothing to recommend
                note = f"not measured: {clean_text(str(error), 300)}"
                results += [LevelResult(left_out, note=note) for left_out in levels[number:]]
                is_complete = False
                break
            if found is None:
                return None
            results.append(found)
            self._observer.log(f"probe: {level_sentence(found)}")
        measure: Measure = "task_score" if self._rule.check is not None else "judgement"
        cost_usd = self._text.stats().cost_usd - spent_before
        return replace(recommend(results, measure, len(self._held_out), cost_usd), is_complete=is_complete)

    def _measure(self, level: GuidanceLevel) -> LevelResult | None:
        before, started = self._text.stats(), time.perf_counter()
        try:
            coach = self._build_coach(
                self._config, self._student.base, self._text, self._references, self._train, level
            )
        except ConfigError as error:  # no reference that can serve as an example
            return LevelResult(level, note=f"not measured: {clean_text(str(error), 300)}")
        guided = self._guide(coach)
        texts = self._answers(coach, guided)
        if texts is None:
            return None
        scores = self._scores([text for text, _ in texts])
        after = self._text.stats()
        spent: dict[str, Any] = {
            "completion_tokens_mean": statistics.fmean(length for _, length in texts),
            "cost_usd": after.cost_usd - before.cost_usd,
            "calls": after.calls - before.calls,
            "cache_hits": after.cache_hits - before.cache_hits,
            "seconds": time.perf_counter() - started,
        }
        if not any(guided) or not scores:
            return LevelResult(level, note="not measured: the teacher gave no guidance that can be used", **spent)
        differences = [with_ - without for without, with_ in scores]
        gap = paired_bootstrap(differences, self._config.seed)
        return LevelResult(
            level,
            score_without=statistics.fmean(without for without, _ in scores),
            score_with=statistics.fmean(with_ for _, with_ in scores),
            gap=gap,
            pairs=len(scores),
            verdict=verdict(gap, differing(differences), higher_is_better=True),
            **spent,
        )

    def _guide(self, coach: GuidedTeacher) -> list[bool]:
        """Which held-out answers have guidance; a lesson is drawn from training prompts, never from these."""
        if coach.level != "lesson":
            return coach.guide(self._own, self._held_out)
        batch = batch_for_step(self._train, 1, self._config.batch_size, self._config.seed)
        rollouts = draw_rollouts(self._student, batch, self._config, 0, self._observer.should_stop)
        has_lesson = bool(rollouts) and all(coach.guide(rollouts, batch))
        return [has_lesson] * len(self._own)

    def _answers(self, coach: GuidedTeacher, guided: Sequence[bool]) -> list[tuple[str, int]] | None:
        """Text and length of each held-out answer with guidance; where there is none, the student's own answer."""
        asked = [rollout for rollout, has_guidance in zip(self._own, guided, strict=True) if has_guidance]
        if self._observer.should_stop():
            return None
        max_tokens, base = self._config.rollout_max_tokens, self._student.base
        decoded = coach.answers(asked, max_tokens, self._observer.should_stop) if asked else []
        if asked and not decoded:
            return None
        new = iter(decoded)
        texts = []
        for rollout, has_guidance in zip(self._own, guided, strict=True):
            ids = next(new).ids if has_guidance else rollout.completion_ids
            texts.append((decode_completion(base.tokenizer, ids, base.stop_ids), len(ids)))
        return texts

    def _scores(self, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(without, with) for each prompt that can be scored."""
        if self._rule.check is None:
            return self._judged(texts)
        found = []
        for example, rollout, text in zip(self._held_out, self._own, texts, strict=True):
            without, with_ = self._rule.score(rollout.completion, example), self._rule.score(text, example)
            if without is not None and with_ is not None:
                found.append((without, with_))
        return found

    def _judged(self, texts: Sequence[str]) -> list[tuple[float, float]]:
        points = {"first": (0.0, 1.0), "second": (1.0, 0.0), "tie": (0.5, 0.5)}
        pairs = [
            JudgePair(rollout.messages, first=text, second=rollout.completion)
            for rollout, text in zip(self._own, texts, strict=True)
        ]
        differ = [pair for pair in pairs if pair.first != pair.second]  # equal answers need no judge
        judged = iter(self._text.judge(differ) if differ else [])
        found = []
        for pair in pairs:
            judgement = next(judged) if pair.first != pair.second else None
            if pair.first == pair.second:
                found.append(points["tie"])
            elif judgement is not None:
                found.append(points[judgement.preferred])
        return found


def recommend(levels: Sequence[LevelResult], measure: Measure, held_out_prompts: int, cost_usd: float) -> ProbeReport:
    """The level with the largest gap whose interval excludes zero, the cheaper of equals; else `contrast`."""
    better = [level for level in levels if level.verdict == "better" and level.gap is not None]
    measured = [level for level in levels if level.gap is not None]
    if better:
        best = max(better, key=lambda level: level.gap.mean if level.gap else 0.0)  # the first of equals: the cheapest
        reason = f"method coach at level {best.level}: {level_sentence(best)}.{_left_out(levels)}"
        return ProbeReport(measure, held_out_prompts, "coach", best.level, reason, cost_usd, tuple(levels))
    tried = "; ".join(level_sentence(level) for level in measured) or "no level could be measured"
    reason = f"method contrast, since no level of guidance makes this student better: {tried}.{_left_out(levels)}"
    return ProbeReport(measure, held_out_prompts, "contrast", None, reason, cost_usd, tuple(levels))


def _left_out(levels: Sequence[LevelResult]) -> str:
    names = [level.level for level in levels if level.gap is None]
    return f" Not measured: {', '.join(names)}." if names and len(names) < len(levels) else ""


def level_sentence(found: LevelResult) -> str:
    """`examples 0.00 → 0.96 (24 prompts, gap 0.96 [0.87, 1.00])`."""
    if found.gap is None or found.score_without is None or found.score_with is None:
        return f"{found.level} {found.note}"
    return (
        f"{found.level} {found.score_without:.2f} → {found.score_with:.2f} ({found.pairs} prompts, gap "
        f"{found.gap.mean:.2f} [{found.gap.low:.2f}, {found.gap.high:.2f}], {found.verdict}, ${found.cost_usd:.4f})"
    )


def run_probe(
    config: RunConfig,
    text_teacher: TextTeacher,
    build_coach: BuildCoach,
    train_examples: Sequence[PromptExample],
    held_out_examples: Sequence[PromptExample],
    observer: ProbeObserver,
) -> ProbeReport | None:
    """The probe as a job by itself: loads the student, trains nothing; None when stopped on the way.

    With `guidance_level` given, that level alone is tried.

    Raises:
        OPDError: the student does not load, or the teacher cannot be asked.
    """
    observer.phase("preparing", "loading the student")
    base = load_base(Path(config.base_model_path))
    student = initial_student(config, base)
    references = References(text_teacher, base.tokenizer, config.rollout_max_tokens, AnswerRule.of(config))
    held_out = list(held_out_examples)[: config.eval_max_samples]
    probe = Probe(config, student, text_teacher, build_coach, references, train_examples, held_out, observer)
    return probe.run(LEVELS if config.guidance_level is None else (config.guidance_level,))
