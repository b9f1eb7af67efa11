"""Which checkpoint a resume goes on from, with which inputs: refused in the call, before anything is queued."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from opd_core.checkpoint_files import list_checkpoints
from opd_core.comparison import Candidate, ComparisonSpec
from opd_core.config import RunConfig, parse_config
from opd_core.control.preflight.checking import CheckedComparison, Preflight
from opd_core.control.processes import try_lock
from opd_core.control.runs import Runs
from opd_core.control.supervisor import Supervisor
from opd_core.errors import CheckpointError, ConfigError, StateError
from opd_core.model_files import ModelInfo
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.run_inputs import fingerprint_inputs, read_accepted
from opd_core.run_prompts import RunPrompts
from opd_core.settings import Settings
from opd_core.state.store import RunStore
from opd_core.training.checkpoint import save_checkpoint
from tests.opd_core.control.scripted_worker import COMMAND


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n")
    return path


@pytest.fixture
def config(prompts: Path) -> RunConfig:
    return parse_config({"base_model_path": "/models/tiny", "prompts_path": str(prompts), "run_id": "mine"})


@pytest.fixture
def runs(home: HomePaths) -> Iterator[Runs]:
    """Runs that accept every configuration; some other job has the device, so nothing leaves the queue."""

    def check(config: RunConfig, roots: Roots, settings: Settings) -> Preflight:
        return Preflight(config, ModelInfo.__new__(ModelInfo), None, None, RunPrompts([], [], ()), ())

    def check_comparison(spec: ComparisonSpec, *_: object) -> CheckedComparison:
        return CheckedComparison(spec, ("tight",))

    lock = try_lock(home.device_lock)
    assert lock is not None
    yield Runs(
        Settings(home), Roots.of(home.home), supervisor=Supervisor(home, RunStore(home.database), COMMAND),
        preflight=check, comparison_preflight=check_comparison,
    )  # fmt: skip
    os.close(lock)


@pytest.fixture
def folder(home: HomePaths, runs: Runs, config: RunConfig) -> Path:
    """The checkpoints of an interrupted run, of steps 20, 40 and 60."""
    runs.start(config)
    store = RunStore(home.database)
    epoch = store.claim("mine")
    where = home.checkpoints("mine")
    for step in (20, 40, 60):
        state = {
            "memory": {"step": step},
            "inputs": fingerprint_inputs(config),
            "config": config.model_dump(mode="json"),
        }
        path = save_checkpoint(where, step, {"a.lora_a": mx.ones((2, 2))}, {}, {}, state)
        store.heartbeat("mine", epoch, checkpoint_path=str(path))
    store.finish("mine", "interrupted", "worker_died", epoch=epoch, message="")
    return where


def damage(path: Path) -> None:
    file = path / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_a_sound_run_is_queued_and_keeps_its_checkpoints(runs: Runs, folder: Path) -> None:
    assert runs.resume("mine").state == "queued"
    assert names(folder) == ["step_000020", "step_000040", "step_000060"]
    assert not read_accepted(folder)


def test_a_damaged_newest_checkpoint_refuses_the_call_and_changes_nothing(runs: Runs, folder: Path) -> None:
    damage(folder / "step_000060")
    with pytest.raises(CheckpointError, match=r"step_000060.*damaged.*from_step 40"):
        runs.resume("mine")
    row = runs.status("mine")
    assert row.state == "interrupted" and names(folder)[-1] == "step_000060"


def test_an_earlier_checkpoint_is_taken_when_it_is_asked_for_and_said(runs: Runs, folder: Path) -> None:
    damage(folder / "step_000060")
    row = runs.resume("mine", from_step=40)
    assert row.state == "queued" and row.checkpoint_path == str(folder / "step_000040")
    assert names(folder) == ["step_000020", "step_000040"]


@pytest.mark.parametrize("step", [30, 60])
def test_a_step_without_a_sound_checkpoint_changes_nothing(runs: Runs, folder: Path, step: int) -> None:
    damage(folder / "step_000060")
    with pytest.raises(CheckpointError, match="of step 30|damaged"):  # noqa: RUF043
        runs.resume("mine", from_step=step)
    assert runs.status("mine").state == "interrupted" and len(names(folder)) == 3


def test_checkpoints_of_a_run_that_cannot_be_resumed_now_are_not_touched(
    runs: Runs, home: HomePaths, folder: Path
) -> None:
    runs.resume("mine")
    with pytest.raises(StateError):
        runs.resume("mine", from_step=20)
    assert len(names(folder)) == 3


def test_edited_prompts_are_refused_by_name_until_the_user_says_so(runs: Runs, folder: Path, prompts: Path) -> None:
    prompts.write_text("one\ntwo\nthree\n")
    with pytest.raises(CheckpointError, match=r"The file of prompts_path \(.*prompts.*\) changed.*accept_changes"):
        runs.resume("mine")
    assert runs.status("mine").state == "interrupted" and not read_accepted(folder)
    assert runs.resume("mine", accept_changes=True).state == "queued"
    assert set(read_accepted(folder)) == {"prompts_path"}


def test_a_comparison_on_edited_prompts_warns(runs: Runs, folder: Path, prompts: Path) -> None:
    spec = ComparisonSpec(run_id="mine", candidates=(Candidate(name="base"), Candidate(name="other")))
    assert runs.start_comparison(spec).message == "tight"
    prompts.write_text("one\n2\n")
    message = runs.start_comparison(spec).message
    assert message.startswith("tight The file of prompts_path") and "changed since the run" in message


def test_a_comparison_has_no_steps_to_go_back_to(runs: Runs, home: HomePaths, folder: Path) -> None:
    candidates: Any = (Candidate(name="base"), Candidate(name="other"))
    row = runs.start_comparison(ComparisonSpec(run_id="mine", candidates=candidates))
    runs.stop(row.run_id)
    with pytest.raises(ConfigError, match="has no checkpoints"):
        runs.resume(row.run_id, from_step=20)
