"""A run on a full disk waits, visibly, pays nothing meanwhile, and goes on when there is room."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opd_core import blas
from opd_core.blas import FastBlas
from opd_core.config import parse_config
from opd_core.errors import CheckpointError, StoreError, TeacherUnavailableError
from opd_core.paths import HomePaths
from opd_core.state.recorder import RunRecorder
from opd_core.state.store import RunStore
from opd_core.training import trainer
from opd_core.types import RunState
from opd_core.worker import jobs, room
from opd_core.worker.jobs import JobContext, distil
from opd_core.worker.room import DISK_FLOOR_BYTES, MEMORY_FLOOR_BYTES, Room, is_disk_full

PLENTY = 10 * DISK_FLOOR_BYTES


@pytest.fixture
def context(home: HomePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    monkeypatch.setattr(blas, "load_fast_blas", lambda: FastBlas("reference", None, "not in a test"))
    (tmp_path / "prompts.txt").write_text("\n".join(f"Prompt {number}" for number in range(20)))
    config = parse_config({"base_model_path": "/models/tiny", "prompts_path": str(tmp_path / "prompts.txt")})
    home.prepare()
    store = RunStore(home.database)
    store.create("run", "distillation", config.model_dump(mode="json"))
    store.heartbeat("run", store.claim("run"))
    row = store.get("run")
    return JobContext(row, home, store, RunRecorder(store, home, row, lambda: False))


class Disk:
    """Free bytes by a script, one figure a look; the last one stays. Notes the run's state at each look's wait."""

    def __init__(self, context: JobContext, *free: int) -> None:
        self.context, self.free = context, list(free)
        self.states: list[RunState] = []
        self.told: list[str | None] = []
        self.clock: Callable[[], float] = itertools.count(0.0, 20.0).__next__

    def free_bytes(self, folder: Path) -> int:
        return self.free[0]

    def sleep(self, seconds: float) -> None:
        row = self.context.store.get("run")
        self.states.append(row.state)
        self.told.append(row.waiting_reason)
        if len(self.free) > 1:
            self.free.pop(0)

    def room(self, available: int = 10 * MEMORY_FLOOR_BYTES) -> Room:
        home = self.context.home
        return Room(
            home.home, home.checkpoints("run"), self.context.recorder,
            free_bytes=self.free_bytes, available_bytes=lambda: available, sleep=self.sleep, clock=self.clock,
        )  # fmt: skip


def test_with_room_there_is_no_wait(context: JobContext) -> None:
    disk = Disk(context, PLENTY)
    disk.room().wait()
    assert disk.states == [] and context.store.get("run").state == "preparing"


def test_on_a_full_disk_the_run_waits_visibly_and_goes_on_with_room(context: JobContext) -> None:
    disk = Disk(context, 5_000_000, 5_000_000, PLENTY)
    disk.room().wait()
    assert disk.states == ["waiting", "waiting"]
    assert disk.told[0] is not None and "5 MB are free and 100 MB are needed" in disk.told[0]
    row = context.store.get("run")
    assert (row.state, row.waiting_reason, row.wake_at) == ("running", None, None)


def test_room_means_room_for_two_more_checkpoints(context: JobContext) -> None:
    newest = context.home.checkpoints("run") / "step_000010"
    newest.mkdir(parents=True)
    (newest / "adapters.safetensors").write_bytes(bytes(1_000_000))
    assert Disk(context, DISK_FLOOR_BYTES + 1_999_999).room().shortage() is not None
    assert Disk(context, DISK_FLOOR_BYTES + 2_000_000).room().shortage() is None


def test_a_stop_ends_the_wait(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(context, 0)
    looks = iter([False, False, True])
    monkeypatch.setattr(context.recorder, "should_stop", lambda: next(looks))
    disk.room().wait()
    assert len(disk.states) == 2


def test_a_wait_that_cannot_be_recorded_is_a_wait_all_the_same(
    context: JobContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, recorded = Disk(context, 0, PLENTY), []

    def waiting(reason: str, seconds: float) -> None:
        if disk.free == [0, PLENTY]:
            raise StoreError("The run database cannot grow: the disk is full.")
        recorded.append(reason)

    monkeypatch.setattr(context.recorder, "waiting", waiting)
    disk.room().wait()
    assert recorded == [""] and "cannot be recorded" in capsys.readouterr().err


def test_little_memory_is_said_once(context: JobContext) -> None:
    tight = Disk(context, PLENTY).room(available=MEMORY_FLOOR_BYTES - 1)
    for _ in range(4):
        tight.wait()
    warnings = [event.message for event in context.store.events("run") if event.kind == "warning"]
    assert len(warnings) == 1 and "Memory is nearly used up: 200 MB" in warnings[0]


def test_memory_that_was_this_workers_own_is_given_back_before_anything_is_said(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(context, PLENTY)
    available = [MEMORY_FLOOR_BYTES - 1]
    monkeypatch.setattr(room, "give_back_memory", lambda: available.append(PLENTY))
    looking = Room(
        context.home.home, context.home.checkpoints("run"), context.recorder,
        free_bytes=disk.free_bytes, available_bytes=lambda: available[-1], sleep=disk.sleep, clock=disk.clock,
    )  # fmt: skip
    looking.wait()
    assert len(available) == 2
    assert not [event for event in context.store.events("run") if event.kind == "warning"]


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Quota"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (caused(CheckpointError("not written"), FULL), True),
        (caused(CheckpointError("not written"), RuntimeError("[write] Unable to write 9 bytes to file.")), True),
        (caused(CheckpointError("not written"), OSError(errno.EIO, "Input/output error")), False),
        (CheckpointError("damaged"), False),
        (StoreError("The run database cannot grow: the disk is full."), True),
        (StoreError("The run database is busy"), False),
    ],
)
def test_a_full_disk_is_told_from_other_troubles(error: Exception, is_full: bool) -> None:
    assert is_disk_full(error) == is_full


class Trainer:
    """Stands where the trainer is: each call does the next thing of a list."""

    def __init__(self, folder: Path, *does: Exception | None) -> None:
        self.folder, self.does, self.calls = folder, list(does), 0

    def __call__(self, *args: Any, before_step: Callable[[], None], **more: Any) -> trainer.TrainingOutcome:
        self.calls += 1
        before_step()
        error = self.does.pop(0) if self.does else None
        if error is not None:
            raise error
        return trainer.TrainingOutcome("finished", 3, 2, 0.1, "reverse_kl", self.folder, "Done.")


def train_on(disk: Disk, monkeypatch: pytest.MonkeyPatch, *does: Exception | None) -> Trainer:
    fake = Trainer(disk.context.home.checkpoints("run"), *does)
    monkeypatch.setattr(trainer, "train", fake)
    monkeypatch.setattr(jobs, "Room", lambda *_: disk.room())
    return fake


def test_nothing_is_loaded_or_asked_before_there_is_room(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(context, 0, 0, PLENTY)
    fake = train_on(disk, monkeypatch)
    seen: list[int] = []

    def sleep(seconds: float) -> None:
        seen.append(fake.calls)
        disk.free.pop(0)

    monkeypatch.setattr(disk, "sleep", sleep)
    assert distil(context).state == "completed"
    assert seen == [0, 0] and fake.calls == 1


def test_a_run_that_had_to_let_go_is_taken_up_again_when_there_is_room(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(context, PLENTY)
    fake = train_on(disk, monkeypatch, caused(CheckpointError("not written"), FULL), FULL)
    assert distil(context).state == "completed" and fake.calls == 3


def test_a_disk_that_says_it_is_full_and_is_not_ends_the_run_after_some_attempts(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = train_on(Disk(context, PLENTY), monkeypatch, *[FULL] * 9)
    with pytest.raises(OSError, match="No space"):
        distil(context)
    assert fake.calls == jobs.FULL_DISK_ATTEMPTS


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), CheckpointError("damaged"), TeacherUnavailableError("no network")],
)
def test_other_troubles_are_not_taken_for_a_full_disk(
    context: JobContext, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fake = train_on(Disk(context, PLENTY), monkeypatch, error)
    with pytest.raises(type(error)):
        distil(context)
    assert fake.calls == 1


def test_the_floor_is_below_what_a_start_asks_for() -> None:
    """A run that may start does not wait at its first step."""
    from opd_core.control.preflight.models import MIN_DISK_BYTES

    assert room.DISK_FLOOR_BYTES <= MIN_DISK_BYTES
