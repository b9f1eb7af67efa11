from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from opd_core import blas, worker
from opd_core.blas import FastBlas
from opd_core.config import RunConfig, parse_config
from opd_core.control.processes import try_lock
from opd_core.errors import (
    BudgetExceededError,
    BudgetFrozenError,
    TeacherRefusedError,
    TeacherStoppedError,
    TeacherUnavailableError,
)
from opd_core.paths import HomePaths
from opd_core.seams import REAL, Seams
from opd_core.state.recorder import RunRecorder
from opd_core.state.store import RunStore
from opd_core.training import compare as comparing
from opd_core.training import trainer
from opd_core.types import EndReason, JobKind
from opd_core.worker.jobs import Job, JobContext, JobEnd, checkpoint_folder, compare, distil
from tests.opd_core.control.scripted_worker import COMMAND


@pytest.fixture
def store(home: HomePaths) -> RunStore:
    home.prepare()
    return RunStore(home.database)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A configuration with a prompt file; the BLAS of this machine is left alone."""
    monkeypatch.setattr(blas, "load_fast_blas", lambda: FastBlas("reference", None, "not in a test"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Prompt number {number}" for number in range(20)))
    return parse_config({"base_model_path": "/models/tiny", "prompts_path": str(prompts)})


def context(home: HomePaths, store: RunStore, run_id: str) -> JobContext:
    store.claim(run_id)
    row = store.get(run_id)
    return JobContext(row, home, store, RunRecorder(store, home, row, lambda: False))


class Trainer:
    """Stands where the trainer is: remembers what it was given, ends as it is told."""

    def __init__(self, reason: EndReason, publishes: bool = True) -> None:
        self.reason, self.publishes = reason, publishes
        self.given: dict[str, Any] = {}

    def __call__(
        self,
        config: RunConfig,
        folder: Path,
        train_examples: list[Any],
        held_out: list[Any],
        build_teacher: object,
        observer: object,
        *,
        resume: bool,
        **others: object,
    ) -> trainer.TrainingOutcome:
        self.given = others | {"folder": folder, "prompts": (len(train_examples), len(held_out)), "resume": resume}
        if self.publishes:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapters.safetensors").touch()
        return trainer.TrainingOutcome(self.reason, 30, 20, 0.1, "reverse_kl", folder, "A message.")


@pytest.mark.parametrize(
    ("reason", "state"),
    [("finished", "completed"), ("early_stop", "completed"), ("by_user", "stopped"), ("budget", "stopped")],
)
def test_a_distillation_ends_as_its_trainer_says(
    home: HomePaths,
    store: RunStore,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    reason: EndReason,
    state: str,
) -> None:
    monkeypatch.setattr(trainer, "train", Trainer(reason))
    store.create("run", "distillation", config.model_dump(mode="json"))
    end = distil(context(home, store, "run"))
    assert (end.state, end.reason, end.message, end.best_step) == (state, reason, "A message.", 20)
    assert end.final_adapter_path == home.checkpoints("run")


def test_a_run_that_published_nothing_names_no_adapter(
    home: HomePaths, store: RunStore, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "train", Trainer("by_user", publishes=False))
    store.create("run", "distillation", config.model_dump(mode="json"))
    assert distil(context(home, store, "run")).final_adapter_path is None


def test_a_run_goes_on_from_a_published_checkpoint_and_not_from_a_half_written_one(
    home: HomePaths, store: RunStore, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Trainer("finished")
    monkeypatch.setattr(trainer, "train", fake)
    store.create("run", "distillation", config.model_dump(mode="json"))
    job = context(home, store, "run")
    half = home.checkpoints("run") / ".tmp-step_000010-ab"
    half.mkdir(parents=True)
    distil(job)
    assert fake.given["resume"] is False
    half.rename(half.with_name("step_000010"))  # without a manifest: the trainer refuses it, and nobody starts over
    distil(job)
    assert fake.given["resume"] is True


def test_a_trainer_is_told_what_its_inputs_are(
    home: HomePaths, store: RunStore, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Trainer("finished")
    monkeypatch.setattr(trainer, "train", fake)
    store.create("run", "distillation", config.model_dump(mode="json"))
    distil(context(home, store, "run"))
    assert set(fake.given["inputs"]) == {"prompts_path"}


def test_a_distillation_gets_both_halves_of_the_split(
    home: HomePaths, store: RunStore, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Trainer("finished")
    monkeypatch.setattr(trainer, "train", fake)
    store.create("run", "distillation", config.model_dump(mode="json"))
    distil(context(home, store, "run"))
    train, held_out = fake.given["prompts"]
    assert train + held_out == 20 and train > held_out > 0


def test_checkpoints_go_to_the_folder_of_the_configuration(home: HomePaths, config: RunConfig) -> None:
    assert checkpoint_folder(home, "run", config) == home.home / "checkpoints" / "run"
    elsewhere = config.model_copy(update={"checkpoint_dir": "/big/disk"})
    assert checkpoint_folder(home, "run", elsewhere) == Path("/big/disk/run")


@pytest.mark.parametrize("result", [{"rows": [1]}, None])
def test_a_comparison_writes_its_result_unless_stopped(
    home: HomePaths,
    store: RunStore,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    result: dict[str, Any] | None,
) -> None:
    monkeypatch.setattr(comparing, "compare", lambda spec, config, build_teacher, observer, judge: result)
    store.create("run", "distillation", config.model_dump(mode="json"))
    store.create("job", "comparison", {"job_id": "job", "run_id": "run", "candidates": [{"name": "base"}]})
    end = compare(context(home, store, "job"))
    path = home.result("job")
    if result is None:
        assert end == JobEnd("stopped", "by_user", "Stopped by request; there is no result.")
        assert not path.exists()
    else:
        assert (end.state, end.result_path) == ("completed", path)
        assert json.loads(path.read_text()) == result


def start_by_hand(home: HomePaths, epoch: int) -> subprocess.CompletedProcess[str]:
    """Start a worker as the supervisor would, but with any epoch."""
    locks = [try_lock(home.run_lock("run")), try_lock(home.device_lock)]
    held = [lock for lock in locks if lock is not None]
    options = ["run", "--home", str(home.home), "--epoch", str(epoch), "--locks", ",".join(map(str, held))]
    try:
        return subprocess.run(
            [*COMMAND, *options], pass_fds=held, capture_output=True, text=True, check=False, timeout=60
        )
    finally:
        for lock in held:
            os.close(lock)


def test_a_worker_of_another_epoch_leaves_quietly(home: HomePaths, store: RunStore) -> None:
    store.create("run", "distillation", {})
    epoch = store.claim("run")
    before = store.get("run")
    done = start_by_hand(home, epoch + 1)
    assert done.returncode == 0
    assert "has no run any more" in done.stderr and "Traceback" not in done.stderr
    after = store.get("run")
    assert (after.state, after.pid, after.heartbeat_at) == (before.state, before.pid, before.heartbeat_at)


def test_a_worker_of_a_run_that_is_not_claimed_leaves_quietly(home: HomePaths, store: RunStore) -> None:
    store.create("run", "distillation", {})
    assert start_by_hand(home, 0).returncode == 0
    assert store.get("run").state == "queued"


def test_the_worker_imports_no_mlx_before_its_job_needs_it() -> None:
    """The fast BLAS must be loaded first."""
    names = "('mlx', 'mlx_lm', 'transformers')"
    script = f"import sys, opd_core.worker; print([name for name in {names} if name in sys.modules])"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


class Machine:
    """Stands where the device lock is; another job holds it for a while."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals, self.given_back = refusals, 0

    def give_back(self) -> None:
        self.given_back += 1

    def take(self) -> bool:
        self.refusals -= 1
        return self.refusals < 0


def working(job: Job, seams: Seams = REAL) -> worker.Worker:
    """A worker of any kind of job; the device it is given stands for its supervisor."""
    jobs: dict[JobKind, Job] = {"distillation": job, "probe": job}
    nothing = cast(Any, None)
    return worker.Worker(nothing, nothing, nothing, jobs, lambda: False, seams=seams)


def waiting_for(job: JobContext, *ends: Exception | JobEnd) -> Job:
    """A job whose attempts end so, one after the other."""
    left = list(ends)

    def work(context: JobContext) -> JobEnd:
        assert context is job
        end = left.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    return work


def test_a_long_wait_gives_the_machine_away_and_the_job_begins_again_at_its_wake_time(
    home: HomePaths, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WAIT_SLICE_SECONDS", 0.0)
    store.create("run", "distillation", {})
    job, machine, done = context(home, store, "run"), Machine(2), JobEnd("completed", "finished", "Done.")
    later = TeacherUnavailableError("The monthly cap is reached.", wake_in_seconds=0.01)
    assert worker._work(job, working(waiting_for(job, later, later, done)), cast(Any, machine)) == done
    assert machine.given_back == 2
    events = [event.message for event in store.events("run") if event.kind == "state"]
    assert [message.partition(":")[0] for message in events[-4:]] == ["waiting", "running"] * 2
    assert "monthly cap" in events[-2]


def test_a_calendar_set_back_makes_no_wait_longer(home: HomePaths, store: RunStore) -> None:
    store.create("run", "distillation", {})
    clock = Seams().now()
    seconds = 0.0

    def sleep(slice_seconds: float) -> None:
        nonlocal seconds, clock
        seconds += slice_seconds
        clock -= timedelta(days=1)

    seams = Seams(now=lambda: clock, monotonic=lambda: seconds, sleep=sleep)
    job, done = context(home, store, "run"), JobEnd("completed", "finished", "Done.")
    later = TeacherUnavailableError("No network.", wake_in_seconds=10.0)
    assert worker._work(job, working(waiting_for(job, later, done), seams), cast(Any, Machine())) == done
    assert seconds == 10.0


def test_a_stop_ends_a_long_wait_and_the_best_adapter_is_named(home: HomePaths, store: RunStore) -> None:
    store.create("run", "distillation", {})
    job, machine = context(home, store, "run"), Machine()
    store.request_stop("run")
    home.checkpoints("run").mkdir(parents=True)
    (home.checkpoints("run") / "adapters.safetensors").touch()
    later = TeacherUnavailableError("No network.", wake_in_seconds=3600.0)
    end = worker._work(job, working(waiting_for(job, later)), cast(Any, machine))
    assert (end.state, end.reason, end.final_adapter_path) == ("stopped", "by_user", home.checkpoints("run"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BudgetExceededError("Too little is left.", scope="run", left_pico=1, needed_pico=2), "budget"),
        (BudgetFrozenError("Frozen."), "budget"),
        (TeacherRefusedError("The provider refuses."), "teacher_refused"),
        (TeacherStoppedError("Stop."), "by_user"),
    ],
)
def test_what_ends_a_job_of_a_paid_teacher_is_a_clean_stop(
    home: HomePaths, store: RunStore, error: Exception, reason: str
) -> None:
    store.create("run", "probe", {})
    job = context(home, store, "run")
    end = worker._work(job, working(waiting_for(job, error)), cast(Any, Machine()))
    assert (end.state, end.reason) == ("stopped", reason)


def test_a_teacher_that_only_a_person_can_bring_back_fails_the_job(home: HomePaths, store: RunStore) -> None:
    store.create("run", "probe", {})
    job = context(home, store, "run")
    with pytest.raises(TeacherUnavailableError, match="not accepted"):
        unusable = waiting_for(job, TeacherUnavailableError("The key is not accepted."))
        worker._work(job, working(unusable), cast(Any, Machine()))


def test_a_worker_steps_back_by_the_same_amount_whoever_starts_it() -> None:
    script = (
        "import os; from opd_core.worker.__main__ import step_back; step_back(); step_back();"
        "print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert int(found.stdout) == max(10, os.getpriority(os.PRIO_PROCESS, 0))
