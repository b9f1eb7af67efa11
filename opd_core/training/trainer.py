"""A run from the loaded models to the best adapter: probe, baseline, steps, evaluations, checkpoints, the end.

Returns values and calls an observer; it opens no database and knows no server. Everything random is drawn from
(seed, step), so a run resumed from a checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from opd_core.config import RunConfig
from opd_core.errors import (
    BudgetExceededError,
    BudgetFrozenError,
    OPDError,
    TeacherRefusedError,
    TeacherStoppedError,
    TeacherUnavailableError,
    TrainingError,
)
from opd_core.prompt_files import PromptExample
from opd_core.run_inputs import Inputs
from opd_core.training import checkpoint as checkpoints
from opd_core.training.ahead import Ahead, RememberingTeacher
from opd_core.training.answers import AnswerRule
from opd_core.training.coach_update import LEVELS, BuildCoach
from opd_core.training.evaluator import evaluate
from opd_core.training.lora import Student, initial_student, load_base
from opd_core.training.meter import TeacherMeter
from opd_core.training.methods import BuildTeacher as BuildTeacher
from opd_core.training.methods import Method, Teachers, build_method
from opd_core.training.probe import Probe
from opd_core.training.references import References
from opd_core.training.rollouts import check_decodes
from opd_core.training.run_checkpoints import NO_INPUTS, RunCheckpoints
from opd_core.training.run_memory import MAX_EMPTY_IN_A_ROW, MAX_SKIPPED_IN_A_ROW, RunMemory
from opd_core.training.run_records import RunObserver as RunObserver
from opd_core.training.run_records import TrainingOutcome as TrainingOutcome
from opd_core.training.step import batch_for_step, draw_rollouts, step_line
from opd_core.training.stop_rules import PrimaryMetric
from opd_core.training.teaching import TextTeacher
from opd_core.training.tokenization import may_think
from opd_core.training.updates import StepResult
from opd_core.types import EndReason


def train(
    config: RunConfig,
    folder: Path,
    train_examples: Sequence[PromptExample],
    held_out_examples: Sequence[PromptExample],
    build_teacher: BuildTeacher,
    observer: RunObserver,
    *,
    resume: bool,
    text_teacher: TextTeacher | None = None,
    build_coach: BuildCoach | None = None,
    inputs: Inputs = NO_INPUTS,
    before_step: Callable[[], None] = lambda: None,
) -> TrainingOutcome:
    """Run the configured distillation; checkpoints and the best adapter go to `folder`.

    Args:
        build_teacher: makes the token-level teacher, for method `kl`.
        text_teacher: for `coach`, `contrast`, `sft`, and for `auto`, which then probes; None: `auto` means `kl`.
        build_coach: makes the student guided by the text teacher, for `coach` and the probe.
        inputs: hashes of what the run is trained from; kept in every checkpoint and compared on resume.
        before_step: called before the probe, every step and every evaluation; may take its time.

    Raises:
        ModelFileError, CompatibilityError, ConfigError: model, adapter and teacher do not fit; nothing was trained.
        CheckpointError: a checkpoint could not be written or, on resume, not be read or does not belong to this
            configuration and these inputs.
        TrainingError: the loss stopped being finite; the last good checkpoint stands.
        TeacherUnavailableError: the teacher cannot be asked now; what was trained so far is in a checkpoint.
    """
    observer.phase("preparing", "loading the student")
    base = load_base(Path(config.base_model_path))
    for note in base.notes:
        observer.log(note)
    student = initial_student(config, base)
    check_decodes(base.model, base.path.name)
    held_out = list(held_out_examples)[: config.eval_max_samples]
    teachers = Teachers(build_teacher, text_teacher, build_coach)
    kept = RunCheckpoints(folder, config, inputs, observer)
    run = _Run(config, kept, list(train_examples), held_out, student, teachers, observer, before_step)
    return run.run(resume)


class _Run:
    method: Method
    primary: PrimaryMetric

    def __init__(
        self,
        config: RunConfig,
        kept: RunCheckpoints,
        train_examples: list[PromptExample],
        held_out: list[PromptExample],
        student: Student,
        teachers: Teachers,
        observer: RunObserver,
        before_step: Callable[[], None],
    ) -> None:
        self.config, self.kept, self.folder, self.observer = config, kept, kept.folder, observer
        self.before_step = before_step
        self.train_examples, self.held_out = train_examples, held_out
        self.student = student
        remembering = (
            RememberingTeacher(teachers.text) if teachers.text is not None and config.overlap_teacher else None
        )
        self.remembering = remembering
        self.teachers = teachers if remembering is None else replace(teachers, text=remembering)
        self.references = References(
            teachers.text, student.base.tokenizer, config.rollout_max_tokens, AnswerRule.of(config)
        )
        self.meter = TeacherMeter(teachers.text)
        self.memory = RunMemory()
        self.ahead: Ahead | None = None
        self.is_prepared = False
        self.saved_step = -1
        self.accounted = time.perf_counter()
        """Up to when all time is in a line: of a step, or of an evaluation or a checkpoint."""

    def run(self, resume: bool) -> TrainingOutcome:
        """From the newest checkpoint, or from the start, to one outcome; money and stops end it in good order."""
        try:
            saved = self._restore() if resume else None
            if saved is not None and self.memory.method is None:
                self._begin_again()
                saved = None
            if saved is None:
                checkpoints.discard_after(self.folder, -1)
                self.observer.cut_back({})
            self.before_step()
            if not self._decide_method():
                return self._outcome("by_user", "Stopped by request during the probe; nothing was trained.")
            self._prepare(saved)
            return self._train()
        except TeacherStoppedError:
            return self._outcome("by_user", f"Stopped by request after step {self.memory.step}.")
        except (BudgetExceededError, BudgetFrozenError) as error:
            return self._ended_by_teacher("budget", error)
        except TeacherRefusedError as error:
            return self._ended_by_teacher("teacher_refused", error)
        except TeacherUnavailableError:
            if self.is_prepared:
                self._save()
            raise
        finally:
            if self.ahead is not None:
                self.ahead.close()

    def _decide_method(self) -> bool:
        """Let the probe choose when `auto` has a text teacher; False when stopped on the way."""
        memory, teachers = self.memory, self.teachers
        if self.config.method == "auto" and teachers.text is not None and teachers.build_coach is not None:
            if memory.method is None:
                probe = Probe(
                    self.config, self.student, teachers.text, teachers.build_coach,
                    self.references, self.train_examples, self.held_out, self.observer,
                )  # fmt: skip
                level = self.config.guidance_level
                report = probe.run(LEVELS if level is None else (level,))
                if report is None:
                    return False
                memory.method, memory.guidance_level = report.method, report.guidance_level
                memory.probe = report.as_record()
            self.observer.log(f"auto chose {(memory.probe or {}).get('reason')}")
            decided = {"method": memory.method, "guidance_level": memory.guidance_level}
            self.config = self.config.model_copy(update=decided)
        memory.method = "kl" if self.config.method == "auto" else self.config.method
        if memory.method == "coach" and self.config.guidance_level is None:
            self.config = self.config.model_copy(update={"guidance_level": LEVELS[0]})
        memory.guidance_level = self.config.guidance_level
        return True

    def _prepare(self, saved: checkpoints.Checkpoint | None) -> None:
        """Make the method and give it what the checkpoint holds for it."""
        base, observer, config = self.student.base, self.observer, self.config
        observer.phase("preparing", "loading the teacher")
        self.method = build_method(config, base, self.student, self.teachers, self.references, self.train_examples)
        self.primary = self._primary_metric()
        if self.remembering is not None:
            self.ahead = Ahead(self.remembering, self.references, self.method.asks_for)
        if saved is not None:
            self.kept.load_method(self.method, saved)
        if config.method == "coach" and may_think(base.tokenizer):
            observer.log(
                "warning: this student's chat template has a thinking mode. Guidance in the context teaches thinking "
                "models to stop checking themselves; use an instruct model, or compare the adapters before using one."
            )
        self.is_prepared = True
        observer.log(f"student {base.path.name}, teacher {self.method.teacher_name}, device {mx.default_device()}")
        if config.teacher_batch_api and config.method in ("contrast", "sft"):
            self._ask_ahead()

    def _ask_ahead(self) -> None:
        """Ask at once for the references of all steps to come, which may wait for a batch."""
        config = self.config
        needed = {} if self.primary != "reference_nll" else {example.prompt_id: example for example in self.held_out}
        for step in range(self.memory.step + 1, config.num_training_steps + 1):
            for example in batch_for_step(self.train_examples, step, config.batch_size, config.seed):
                needed[example.prompt_id] = example
        self.observer.phase("preparing", f"asking the teacher for {len(needed)} references")
        try:
            self.references.ask_ahead(list(needed.values()))
        except BudgetExceededError as error:  # what was got trains the student until the next one is missing
            self.observer.log(f"not all references are within the budget: {error}")

    def _primary_metric(self) -> PrimaryMetric:
        wanted = self.config.primary_metric
        if wanted == "task_score" or (wanted is None and self.config.check is not None):
            return "task_score"
        return "reference_nll" if self.method.held_out_teacher is None or wanted == "reference_nll" else "reverse_kl"

    def _train(self) -> TrainingOutcome:
        memory, config = self.memory, self.config
        while True:
            self.before_step()
            if self._evaluation_owed() and not self._evaluate():
                return self._outcome("by_user", f"Stopped by request after step {memory.step}.")
            end = self._end_in_sight()
            if end is not None:
                return self._outcome(*end)
            if memory.step and memory.step % config.checkpoint_every_steps == 0:
                self._save()
                self.accounted = time.perf_counter()
            result = self._step(memory.step + 1)
            if result is None:
                return self._outcome("by_user", f"Stopped by request after step {memory.step}.")
            memory.empty_steps = 0 if result.learned_from else memory.empty_steps + 1
            self._count_skipped(result)

    def _count_skipped(self, result: StepResult) -> None:
        memory = self.memory
        memory.skipped_in_a_row = 0 if result.finite else memory.skipped_in_a_row + 1
        if result.finite:
            return
        memory.skipped_steps += 1
        self.observer.log(
            f"warning: the loss or gradient of step {memory.step} is not usable (not finite, or it exploded); the "
            f"update was left out, {memory.skipped_steps} in all"
        )
        if memory.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"The loss was not finite or exploded for {memory.skipped_in_a_row} steps in a row, up to step "
                f"{memory.step} ({memory.skipped_steps} in all); the adapter of step {memory.best_step} is kept. "
                "Start again with a lower learning_rate."
            )

    def _end_in_sight(self) -> tuple[EndReason, str] | None:
        memory, patience = self.memory, self.config.early_stopping_patience
        if memory.fell_off is not None:
            return "early_stop", f"{memory.fell_off} The adapter of step {memory.best_step} is kept."
        if patience is not None and memory.evaluations_without_better >= patience:
            return "early_stop", f"No better {self.primary} in {memory.evaluations_without_better} evaluations."
        if memory.empty_steps >= MAX_EMPTY_IN_A_ROW:
            return "early_stop", (
                f"In {memory.empty_steps} steps in a row the teacher's texts gave nothing to learn from: the student's "
                "answers were right already, or no text could be used. The metrics lines count which."
            )
        if memory.step >= self.config.num_training_steps:
            return "finished", f"All {memory.step} steps are done."
        return None

    def _evaluation_owed(self) -> bool:
        """At the start, every `eval_every_steps` and at the end; also after a stop that cut one short."""
        step = self.memory.step
        due = step % self.config.eval_every_steps == 0 or step >= self.config.num_training_steps
        return due and self.memory.last_evaluated_step != step

    def _step(self, step: int) -> StepResult | None:
        """One training step; None when a stop was asked for before it was complete."""
        config, observer, updater = self.config, self.observer, self.method.updater
        if observer.should_stop():
            return None
        examples = batch_for_step(self.train_examples, step, config.batch_size, config.seed)
        rollouts, rollout_seconds, waited = [], 0.0, 0.0
        if updater.needs_rollouts(step):
            observer.phase("rollout", f"step {step}")
            started = time.perf_counter()
            if self.ahead is not None:
                self.ahead.begin(examples)
            on_part = None if self.ahead is None else self.ahead.written
            rollouts = draw_rollouts(self.student, examples, config, step, observer.should_stop, on_part)
            rollout_seconds = time.perf_counter() - started
            if not rollouts:
                return None
            observer.rollouts("train", step, rollouts)
        if self.ahead is not None:
            observer.phase("teacher", f"step {step}")
            started = time.perf_counter()
            self.ahead.join()
            waited = time.perf_counter() - started
        observer.phase("update", f"step {step}")
        result = updater.update(rollouts, examples, step)
        result.teacher_seconds += waited
        self.memory.step = step
        now = time.perf_counter()
        line = step_line(step, rollouts, result, config, rollout_seconds) | self.meter.step_figures()
        line["other_seconds"] = now - self.accounted - rollout_seconds - result.teacher_seconds - result.update_seconds
        self.accounted = now
        line["checkpoint_path"] = str(self.folder / f"step_{self.memory.best_step:06d}")
        line["is_best"] = False
        line["peak_memory_gb"] = mx.get_peak_memory() / 1e9
        observer.train_metrics(line)
        return result

    def _evaluate(self) -> bool:
        """Evaluate, and publish the adapter when it is the best so far; False when stopped on the way."""
        observer, memory = self.observer, self.memory
        is_last = memory.step >= self.config.num_training_steps
        phase = "baseline_eval" if memory.step == 0 else "final_eval" if is_last else "evaluation"
        started = time.perf_counter()
        found = evaluate(
            self.student,
            self.method.held_out_teacher,
            self.held_out,
            max_tokens=self.config.rollout_max_tokens,
            check=self.config.check,
            extractor=self.config.extractor,
            references=self._held_out_references(),
            step=memory.step,
            on_progress=lambda done, total: observer.phase(phase, f"{done} of {total} held-out prompts", done / total),
            should_stop=observer.should_stop,
        )
        if found is None:
            return False
        observer.rollouts("val", memory.step, found.rollouts)
        is_best = memory.take(found, self.primary, self.config.seed)
        line: dict[str, object] = {"step": memory.step, **found.summary(), "primary_metric": self.primary}
        line |= {"is_best": is_best, "best_step": memory.best_step, "best_value": memory.best_value}
        line |= {"method": memory.method, "guidance_level": memory.guidance_level}
        line |= {**self.meter.totals(), "eval_seconds": time.perf_counter() - started}
        observer.eval_metrics(line)
        if is_best:
            self._save(is_best)
        self.accounted = time.perf_counter()
        return True

    def _held_out_references(self) -> dict[str, tuple[int, ...]]:
        """Asked for only where they decide; each is paid for once."""
        if self.primary != "reference_nll":
            return {}
        found = zip(self.held_out, self.references.answer_ids(self.held_out), strict=True)
        references = {example.prompt_id: ids for example, ids in found if ids is not None}
        if not references:
            raise TrainingError(
                "There is no reference for any held-out prompt, so reference_nll cannot pick the best adapter. Give a "
                "check, or look at the run's teacher_completions file for why the references could not be used."
            )
        return references

    def _save(self, is_best: bool = False) -> None:
        """Publish a checkpoint of this step, unless it stands already, and its adapter when it is the best."""
        memory = self.memory
        path = self.folder / f"step_{memory.step:06d}"
        is_new = self.saved_step != memory.step
        if is_new:
            self.observer.phase("checkpoint", f"step {memory.step}")
            memory.teacher = self.meter.totals()
            self.kept.save(memory, self.student, self.method, prompts=len(self.train_examples))
            self.saved_step = memory.step
        if is_best:
            # a checkpoint of before the evaluation stays as it is: whoever resumes from it evaluates again
            checkpoints.publish_best(self.folder, path)
        if is_new or is_best:
            self.observer.checkpoint(memory.step, path, is_best)
        if self.config.save_best_only:
            checkpoints.prune_checkpoints(self.folder, self.folder / f"step_{memory.best_step:06d}")

    def _restore(self) -> checkpoints.Checkpoint | None:
        found = self.kept.restore(self.student)
        if found is None:
            return None
        saved, self.memory = found
        self.meter.resume(self.memory.teacher)
        self.saved_step = self.memory.step
        return saved

    def _begin_again(self) -> None:
        """Nothing was trained yet and the probe was cut short: probe again. What it asked before costs nothing."""
        self.observer.log("the budget had cut the probe short: it is made again before the training begins")
        self.memory, self.saved_step = RunMemory(), -1

    def _ended_by_teacher(self, reason: EndReason, error: OPDError) -> TrainingOutcome:
        """No more teacher: what was trained since the last evaluation is still judged, if that costs nothing."""
        memory = self.memory
        if self.is_prepared and memory.last_evaluated_step != memory.step:
            try:
                self._evaluate()
            except OPDError as again:
                self.observer.log(f"no last evaluation: {again}")
        kept = f"Stopped after step {memory.step}; the best adapter is kept."
        return self._outcome(reason, f"{error} {kept if memory.step else 'Nothing was trained.'}")

    def _outcome(self, reason: EndReason, message: str) -> TrainingOutcome:
        if self.is_prepared:
            self._save()
        memory = self.memory
        return TrainingOutcome(
            end_reason=reason,
            final_step=memory.step,
            best_step=memory.best_step,
            best_value=memory.best_value,
            primary_metric=self.primary if self.is_prepared else str(self.config.primary_metric),
            adapter_path=self.folder,
            message=message,
            method=memory.method or self.config.method,
            guidance_level=memory.guidance_level,
            probe=memory.probe,
        )
