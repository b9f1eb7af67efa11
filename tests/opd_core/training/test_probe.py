"""The probe: finds the gap where there is one, says what it cost, and recommends by the interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import pytest

from opd_core.config import RunConfig, parse_config
from opd_core.errors import BudgetExceededError, ConfigError, TeacherUnavailableError
from opd_core.guidance import Guidance
from opd_core.intervals import Interval
from opd_core.prompt_files import PromptExample
from opd_core.teachers.coach import build_coach
from opd_core.training.coach_update import LEVELS, GuidanceLevel
from opd_core.training.lora import LoadedBase
from opd_core.training.probe import LevelResult, ProbeReport, recommend, run_probe
from opd_core.training.references import References
from opd_core.training.rollouts import Decoded
from opd_core.training.teaching import TextTeacher
from opd_core.training.tokenization import completion_ids
from opd_core.types import Message, Rollout
from tests.opd_core.training.conftest import example
from tests.opd_core.training.scripted_teacher import PRICE, ScriptedTeacher

TRAIN = [example(f"train {index}") for index in range(8)]
HELD_OUT = [example(f"held out {index}") for index in range(8)]
CHECK = {"kind": "regex", "pattern": "right.*"}


@dataclass
class GuidedScript:
    """A `GuidedTeacher` whose answers follow a script; scoring is not its business here."""

    level: GuidanceLevel
    text: TextTeacher
    base: LoadedBase
    write: Callable[[GuidanceLevel, Rollout], str]
    name: str = "script"
    vocab_size: int = 259
    is_fixed: bool = False
    guided_on: list[str] = field(default_factory=list)

    def guide(self, rollouts: Sequence[Rollout], examples: Sequence[PromptExample]) -> list[bool]:
        self.guided_on += [rollout.prompt for rollout in rollouts]
        if self.level == "lesson":
            return [self.text.lesson(rollouts) is not None] * len(rollouts)
        if self.level in ("critique", "reference"):
            return [item is not None for item in self.text.guidance(rollouts)]
        return [True] * len(rollouts)

    def answers(
        self, rollouts: Sequence[Rollout], max_tokens: int, should_stop: Callable[[], bool] = lambda: False
    ) -> list[Decoded]:
        if should_stop():
            return []
        ids = [completion_ids(self.base.tokenizer, self.write(self.level, rollout)) for rollout in rollouts]
        return [Decoded(row, (0.0,) * len(row), True) for row in ids]

    def head(self, states: mx.array) -> mx.array:
        raise NotImplementedError

    def states(self, conversations: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]]) -> mx.array:
        raise NotImplementedError

    def context_length(self, conversation: Sequence[Message]) -> int:
        raise NotImplementedError

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Decoded]:
        raise NotImplementedError

    def follow(self, step: int, adapter: dict[str, mx.array]) -> None: ...

    def arrays(self) -> dict[str, mx.array]:
        return {}

    def load_arrays(self, arrays: dict[str, mx.array]) -> None: ...


@dataclass
class Scripts:
    """Builds the scripts, and keeps them."""

    write: Callable[[GuidanceLevel, Rollout], str]
    built: list[GuidedScript] = field(default_factory=list)
    fail: Callable[[GuidanceLevel], None] = lambda level: None

    def __call__(
        self,
        config: RunConfig,
        base: LoadedBase,
        text: TextTeacher,
        references: References,
        train_examples: Sequence[PromptExample],
        level: GuidanceLevel,
    ) -> GuidedScript:
        self.fail(level)
        if level == "examples":
            references.texts(train_examples[: config.num_guidance_examples])
        self.built.append(GuidedScript(level, text, base, self.write))
        return self.built[-1]


@dataclass
class Observer:
    """Remembers the phases; asks for a stop at the named one."""

    stop_at: str | None = None
    phases: list[tuple[str, float | None]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def phase(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        self.phases.append((detail, fraction))

    def log(self, message: str) -> None:
        self.lines.append(message)

    def should_stop(self) -> bool:
        return self.stop_at is not None and self.phases[-1][0] == self.stop_at


def only_examples(level: GuidanceLevel, rollout: Rollout) -> str:
    return "right" if level == "examples" else "no"


def probe(
    folder: Path,
    build: object,
    teacher: ScriptedTeacher | None = None,
    observer: Observer | None = None,
    held_out: Sequence[PromptExample] = HELD_OUT,
    **more: object,
) -> ProbeReport | None:
    values = {"base_model_path": str(folder), "prompts_path": "p.txt", "rollout_max_tokens": 8, "batch_size": 2}
    config = parse_config({**values, "check": CHECK, "num_guidance_examples": 3, "num_rollouts_per_prompt": 2, **more})
    return run_probe(config, teacher or ScriptedTeacher(), build, TRAIN, held_out, observer or Observer())  # type: ignore[arg-type]


def by_level(report: ProbeReport | None) -> dict[GuidanceLevel, LevelResult]:
    assert report is not None
    return {found.level: found for found in report.levels}


def test_it_finds_the_gap_for_examples_and_none_for_the_others(tiny_folder: Path) -> None:
    observer = Observer()
    report = probe(tiny_folder, Scripts(only_examples), observer=observer)
    assert report is not None
    assert (report.method, report.guidance_level, report.measure) == ("coach", "examples", "task_score")
    found = by_level(report)
    assert list(found) == list(LEVELS)
    assert (found["examples"].score_without, found["examples"].score_with) == (0.0, 1.0)
    assert found["examples"].gap == Interval(1.0, 1.0, 1.0) and found["examples"].verdict == "better"
    for level in ("lesson", "critique", "reference"):
        assert found[level].score_with == 0.0 and found[level].verdict == "no difference shown"
    assert report.reason.startswith("method coach at level examples: examples 0.00 → 1.00 (8 prompts, gap 1.00")
    fractions = [fraction for _, fraction in observer.phases if fraction is not None]
    assert fractions == sorted(fractions) and len(observer.lines) == 4


def test_without_any_gap_it_recommends_contrast_and_says_what_it_saw(tiny_folder: Path) -> None:
    report = probe(tiny_folder, Scripts(lambda level, rollout: "no"))
    assert report is not None and (report.method, report.guidance_level) == ("contrast", None)
    assert all(f"{level} 0.00 → 0.00" in report.reason for level in LEVELS)


def test_each_level_says_what_it_cost(tiny_folder: Path) -> None:
    report = probe(tiny_folder, Scripts(only_examples))
    found = by_level(report)
    calls = {level: found[level].calls for level in LEVELS}
    assert calls == {"examples": 3, "lesson": 1, "critique": 8, "reference": 8}
    assert all(found[level].cost_usd == pytest.approx(PRICE * calls[level]) for level in LEVELS)
    assert report is not None and report.cost_usd == pytest.approx(PRICE * 20)


def test_a_lesson_is_drawn_from_training_prompts_and_critiques_from_held_out_answers(tiny_folder: Path) -> None:
    build = Scripts(only_examples)
    probe(tiny_folder, build)
    seen = {script.level: set(script.guided_on) for script in build.built}
    assert seen["lesson"] and seen["lesson"] <= {item.prompt for item in TRAIN}
    assert seen["critique"] == {item.prompt for item in HELD_OUT}


def test_where_guidance_is_missing_the_students_own_answer_counts(tiny_folder: Path) -> None:
    def guide(rollout: Rollout) -> Guidance | None:
        return None if rollout.prompt == "held out 0" else Guidance("wrong", 0.0, "c", None, "l")

    report = probe(tiny_folder, Scripts(lambda level, rollout: "right"), ScriptedTeacher(guide=guide))
    assert by_level(report)["critique"].score_with == 7 / 8 and by_level(report)["critique"].pairs == 8


def test_a_level_without_any_guidance_is_not_measured(tiny_folder: Path) -> None:
    def fail(level: GuidanceLevel) -> None:
        if level == "examples":
            raise ConfigError("no usable example")

    teacher = ScriptedTeacher(shared_lesson=None, guide=lambda rollout: None)
    report = probe(tiny_folder, Scripts(lambda level, rollout: "right", fail=fail), teacher)
    assert report is not None and report.method == "contrast" and "no level could be measured" in report.reason
    assert [found.gap for found in report.levels] == [None] * 4
    assert "no usable example" in by_level(report)["examples"].note
    assert "no guidance that can be used" in by_level(report)["critique"].note


def budget_error() -> BudgetExceededError:
    return BudgetExceededError("the budget is used up", scope="run", left_pico=0, needed_pico=1)


def test_what_the_budget_does_not_reach_is_left_out_and_the_rest_decides(tiny_folder: Path) -> None:
    def stop_paying(calls: int) -> None:
        if calls == 6:
            raise budget_error()

    report = probe(tiny_folder, Scripts(only_examples), ScriptedTeacher(before_call=stop_paying))
    assert report is not None and report.guidance_level == "examples"
    notes = [found.note for found in report.levels]
    assert notes[:2] == ["", ""] and all("budget is used up" in note for note in notes[2:])
    assert not report.is_complete
    whole = probe(tiny_folder, Scripts(only_examples))
    assert whole is not None and whole.is_complete and whole.as_record()["is_complete"]
    assert report.cost_usd == pytest.approx(6 * PRICE)


def test_a_teacher_that_cannot_be_asked_ends_the_probe(tiny_folder: Path) -> None:
    def out(calls: int) -> None:
        raise TeacherUnavailableError("no network")

    with pytest.raises(TeacherUnavailableError):
        probe(tiny_folder, Scripts(only_examples), ScriptedTeacher(before_call=out))


@pytest.mark.parametrize("where", ["the student's own answers", "guidance by lesson", "guidance by critique"])
def test_a_stop_ends_it_without_a_report(tiny_folder: Path, where: str) -> None:
    assert probe(tiny_folder, Scripts(only_examples), observer=Observer(stop_at=where)) is None


def test_one_level_alone_can_be_asked_for(tiny_folder: Path) -> None:
    report = probe(tiny_folder, Scripts(only_examples), guidance_level="critique")
    assert list(by_level(report)) == ["critique"] and report is not None and report.method == "contrast"


def test_at_most_so_many_prompts_are_tried_and_too_few_show_nothing(tiny_folder: Path) -> None:
    report = probe(tiny_folder, Scripts(only_examples), probe_max_prompts=5)
    assert report is not None and report.held_out_prompts == 5 and report.method == "contrast"
    assert by_level(report)["examples"].score_with == 1.0


def test_without_a_check_the_teacher_judges_the_pairs_that_differ(tiny_folder: Path) -> None:
    def write(level: GuidanceLevel, rollout: Rollout) -> str:
        return "clear" if level == "examples" else "worse" if level == "lesson" else "so so"

    teacher = ScriptedTeacher(
        prefer=lambda pair: {"clear": "first", "worse": "second"}.get(pair.first, "tie")  # type: ignore[arg-type,return-value]
    )
    report = probe(tiny_folder, Scripts(write), teacher, check=None)
    found = by_level(report)
    assert report is not None and (report.measure, report.guidance_level) == ("judgement", "examples")
    assert (found["examples"].score_without, found["examples"].score_with) == (0.0, 1.0)
    assert found["lesson"].verdict == "worse" and found["critique"].score_with == 0.5
    assert teacher.count("judge") == 4 * len(HELD_OUT)


def test_the_record_is_plain_json(tiny_folder: Path) -> None:
    report = probe(tiny_folder, Scripts(only_examples))
    assert report is not None
    record = json.loads(json.dumps(report.as_record(), allow_nan=False))
    assert record["guidance_level"] == "examples" and record["levels"][0]["gap"] == {
        "mean": 1.0,
        "low": 1.0,
        "high": 1.0,
    }


def result(level: GuidanceLevel, mean: float, low: float) -> LevelResult:
    verdict = "better" if low > 0 else "no difference shown"
    return LevelResult(level, 0.0, mean, Interval(mean, low, 1.0), 20, verdict)  # type: ignore[arg-type]


def test_the_largest_sure_gap_wins_and_of_equals_the_cheaper() -> None:
    sure = [result("examples", 0.4, 0.2), result("critique", 0.6, 0.3), result("reference", 0.6, 0.4)]
    assert recommend(sure, "task_score", 20, 0.0).guidance_level == "critique"
    unsure = [result("examples", 0.2, 0.05), result("reference", 0.9, -0.1)]
    assert recommend(unsure, "task_score", 20, 0.0).guidance_level == "examples"


def test_the_real_guided_student_goes_through_every_level(tiny_folder: Path) -> None:
    report = probe(
        tiny_folder, build_coach, ScriptedTeacher(), check={"kind": "regex", "pattern": ".", "must_match": "search"}
    )
    assert report is not None and report.method == "contrast"
    assert all(found.gap is not None and found.pairs == 8 for found in report.levels)
