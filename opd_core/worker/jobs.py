"""What a worker does for each kind of job: distil, compare, probe. Each returns how it ended, or raises."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core import blas
from opd_core.checkpoint_files import list_checkpoints
from opd_core.comparison import ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.control.preflight.paid import utc_today
from opd_core.control.processes import try_lock
from opd_core.control.supervisor import owner_name, run_of_owner
from opd_core.errors import CheckpointError, StoreError, TeacherUnavailableError
from opd_core.message_params import DEFAULT_TEACHER
from opd_core.money.pricing import PriceTable
from opd_core.paths import HomePaths, write_json
from opd_core.run_inputs import fingerprint_inputs
from opd_core.run_prompts import load_run_prompts
from opd_core.settings import KEY_VARIABLE, find_api_key, read_settings
from opd_core.state.database import Database
from opd_core.state.jsonl import JsonlFile
from opd_core.state.recorder import RunRecorder
from opd_core.state.rows import RunRow
from opd_core.state.store import RunStore
from opd_core.types import EndReason, JobKind, RunState
from opd_core.worker.room import Room, is_disk_full

if TYPE_CHECKING:
    from opd_core.teachers.claude import ClaudeTeacher
    from opd_core.training.trainer import TrainingOutcome

EVENTS_SEARCHED = 10_000
"""The newest: what was said before them may be said again."""
WORKER_BUSY_SECONDS = 60.0
"""How long a worker waits for a database that another process holds: a night's work is not lost to a minute's lock."""
FULL_DISK_ATTEMPTS = 3
"""How often a run is taken up again, without having got further, after a disk that was full and by now is not."""


@dataclass(frozen=True)
class JobContext:
    """What a job gets: its row, the home, the store for other runs' rows, and who records what it does."""

    row: RunRow
    home: HomePaths
    store: RunStore
    recorder: RunRecorder


@dataclass(frozen=True)
class JobEnd:
    """How a job ended when it did not fail."""

    state: RunState
    reason: EndReason
    message: str
    best_step: int | None = None
    final_adapter_path: Path | None = None
    result_path: Path | None = None


Job = Callable[[JobContext], JobEnd]


def distil(context: JobContext) -> JobEnd:
    """Run a distillation from its resolved configuration; goes on from the newest checkpoint when there is one.

    When the disk is full the run waits for room, and takes up again from that checkpoint if it had to let go.
    """
    config = parse_config(context.row.config)
    folder = checkpoint_folder(context.home, context.row.run_id, config)
    room = Room(context.home.home, folder, context.recorder)
    attempts, newest = 0, list_checkpoints(folder)[-1:]
    while True:
        room.wait()
        try:
            return _train(context, config, folder, room)
        except TeacherUnavailableError:
            raise
        except (OSError, CheckpointError, StoreError) as error:
            before, newest = newest, list_checkpoints(folder)[-1:]
            attempts = attempts + 1 if newest == before else 1
            is_over = attempts >= FULL_DISK_ATTEMPTS and room.shortage() is None
            if not is_disk_full(error) or is_over or context.recorder.should_stop():
                raise
            context.recorder.log(f"let go: {error}")


def _train(context: JobContext, config: RunConfig, folder: Path, room: Room) -> JobEnd:
    context.recorder.phase("preparing", "reading prompts")
    inputs = fingerprint_inputs(config)
    prompts = load_run_prompts(config)
    _load_blas(context.recorder)
    from opd_core.teachers import build_teacher
    from opd_core.teachers.coach import build_coach
    from opd_core.training.trainer import train

    outcome = train(
        config, folder, prompts.train, prompts.held_out, build_teacher, context.recorder,
        resume=bool(list_checkpoints(folder)),
        text_teacher=_hire(context, config) if context.row.is_paid else None,
        build_coach=build_coach,
        inputs=inputs,
        before_step=room.wait,
    )  # fmt: skip
    end = _training_end(outcome)
    if outcome.probe is None:
        return end
    result = context.home.result(context.row.run_id)
    write_json(result, {"method": outcome.method, "guidance_level": outcome.guidance_level, "probe": outcome.probe})
    return replace(end, result_path=result)


def compare(context: JobContext) -> JobEnd:
    """Evaluate several adapters on the same held-out prompts; the result is one JSON file."""
    spec = ComparisonSpec.model_validate(context.row.config)
    config = parse_config(context.store.get(spec.run_id).config)
    _load_blas(context.recorder)
    from opd_core.teachers import build_teacher
    from opd_core.training import compare as comparing

    judge = _hire(context, _judge_config(spec, config, context.home)) if spec.judge else None
    result = comparing.compare(spec, config, build_teacher, context.recorder, judge)
    if result is None:
        return JobEnd("stopped", "by_user", "Stopped by request; there is no result.")
    path = context.home.result(context.row.run_id)
    write_json(path, result)
    return JobEnd("completed", "finished", f"Compared {len(spec.candidates)} adapters.", result_path=path)


def probe(context: JobContext) -> JobEnd:
    """Try what guidance does for a student, and train nothing; the result is one JSON file."""
    config = parse_config(context.row.config)
    prompts = load_run_prompts(config)
    _load_blas(context.recorder)
    from opd_core.teachers.coach import build_coach
    from opd_core.training.probe import run_probe

    teacher = _hire(context, config)
    report = run_probe(config, teacher, build_coach, prompts.train, prompts.held_out, context.recorder)
    if report is None:
        return JobEnd("stopped", "by_user", "Stopped by request; there is no result.")
    path = context.home.result(context.row.run_id)
    write_json(path, {"job_id": context.row.run_id, "teacher": teacher.name, **report.as_record()})
    return JobEnd("completed", "finished", f"The probe recommends {report.reason}", result_path=path)


JOBS: Mapping[JobKind, Job] = {"distillation": distil, "comparison": compare, "probe": probe}


def _judge_config(spec: ComparisonSpec, config: RunConfig, home: HomePaths) -> RunConfig:
    """The compared run's configuration as that of its judge: another model perhaps, and a budget of its own."""
    own = config.teacher_model_id if config.teacher_kind == "claude" else read_settings(home=home.home).default_teacher
    return config.model_copy(
        update={
            "teacher_model_id": spec.judge_model_id or own or DEFAULT_TEACHER,
            "max_budget_usd": spec.judge_budget_usd,
            "teacher_cache_only": False,
            "teacher_batch_api": False,
        }
    )


def _hire(context: JobContext, config: RunConfig) -> ClaudeTeacher:
    """The job's paid teacher; its key comes from the environment or OPD_HOME/.env and goes nowhere but to it.

    Raises:
        TeacherUnavailableError: the key or the model will not do; found out for nothing, before anything is made.
    """
    from opd_core.teachers.hired import hire_claude

    row, home, recorder = context.row, context.home, context.recorder
    key = find_api_key(home)
    if key is not None:
        os.environ[KEY_VARIABLE] = key

    @contextlib.contextmanager
    def hold_owner(owner: str) -> Iterator[bool]:
        """This process holds the lock of its own run, so earlier epochs of that are dead; another's is tried."""
        if run_of_owner(owner) == row.run_id:
            yield owner != owner_name(row.run_id, row.epoch)
            return
        lock = try_lock(home.run_lock(run_of_owner(owner)))
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    teacher = hire_claude(
        config,
        read_settings(home=home.home),
        Database(home.database, WORKER_BUSY_SECONDS),
        run_id=row.run_id,
        owner=owner_name(row.run_id, row.epoch),
        hold_owner=hold_owner,
        append_of=lambda run_id: JsonlFile(home.completions(run_id)).append,
        on_wait=recorder.waiting,
        should_stop=recorder.should_stop,
    )
    if not config.teacher_cache_only:
        _tell_retirement(context, teacher.name)
    try:
        teacher.check()
    except TeacherUnavailableError as error:
        if error.wake_in_seconds is None:
            raise
        recorder.log(f"the teacher could not be looked at; the run goes on: {error}")  # its calls wait if they must
    return teacher


def _tell_retirement(context: JobContext, model: str) -> None:
    """A line in the log at each start, and one event in all, when the model's end is near."""
    notice = PriceTable.load().retirement_notice(model, utc_today())
    if notice is None:
        return
    context.recorder.log(f"warning: {notice}")
    run_id = context.row.run_id
    if all(event.message != notice for event in context.store.events(run_id, limit=EVENTS_SEARCHED)):
        context.store.add_event(run_id, "warning", notice)


def checkpoint_folder(home: HomePaths, run_id: str, config: RunConfig) -> Path:
    """Where a run's adapter and checkpoints lie: under OPD_HOME, or in a folder that a person allowed."""
    return home.checkpoint_folder(run_id, config.checkpoint_dir)


def published_adapter(context: JobContext) -> Path | None:
    """The adapter of a distillation, where one was published."""
    if context.row.kind != "distillation":
        return None
    folder = Path(context.row.config.get("checkpoint_dir") or context.home.home / "checkpoints") / context.row.run_id
    return folder if (folder / "adapters.safetensors").exists() else None


def _training_end(outcome: TrainingOutcome) -> JobEnd:
    is_complete = outcome.end_reason in ("finished", "early_stop")
    path = outcome.adapter_path
    return JobEnd(
        state="completed" if is_complete else "stopped",
        reason=outcome.end_reason,
        message=outcome.message,
        best_step=outcome.best_step,
        # a run stopped before its first evaluation has published nothing
        final_adapter_path=path if (path / "adapters.safetensors").exists() else None,
    )


def _load_blas(recorder: RunRecorder) -> None:
    """Before anything imports MLX, else its slow reference BLAS stays."""
    found = blas.load_fast_blas()
    recorder.log(f"BLAS: {found.source} ({found.reason})")
