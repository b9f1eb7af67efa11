"""A disk that is full, fails to flush, or gives back other bytes: nothing is lost, nothing is claimed that is not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from opd_core import blas
from opd_core.blas import FastBlas
from opd_core.checkpoint_files import list_checkpoints, set_aside_after, verify_checkpoint
from opd_core.errors import CheckpointError, StoreError
from opd_core.money.ledger import Ledger
from opd_core.paths import HomePaths
from opd_core.state.jsonl import JsonlFile
from opd_core.state.recorder import RunRecorder
from opd_core.state.store import RunStore
from opd_core.training.checkpoint import load_checkpoint, save_checkpoint
from opd_core.worker import jobs, room
from opd_core.worker.jobs import JobContext, distil
from opd_core.worker.room import Room, is_disk_full
from tests.opd_core.money.books import reserve
from tests.opd_core.training.killable import alike, config_of, go, remains, tensor_hashes
from tests.tiny import write_tiny_model

SMALL_DISK_BYTES = 4 * 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs mount")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", gain=2.0)


def fill(place: Path, leave_bytes: int) -> Path:
    """Use the disk up to so many bytes."""
    filler = place / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(place).free - leave_bytes)))
    return filler


def save(folder: Path, step: int, rows: int = 4, **more: Any) -> Path:
    return save_checkpoint(folder, step, {"a.lora_a": mx.full((rows, 256), float(step))}, {}, {}, {}, **more)


@pytest.mark.parametrize("leave_bytes", [0, 4096, 100_000, 1_000_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_ones_and_no_litter(
    small_disk: Path, leave_bytes: int
) -> None:
    folder = small_disk / "run"
    save(folder, 1)
    filler = fill(small_disk, leave_bytes)
    with pytest.raises(CheckpointError, match="step 2 could not be written") as caught:
        save(folder, 2, rows=2048)
    assert is_disk_full(caught.value)
    assert [path.name for path in folder.iterdir()] == ["step_000001"]
    verify_checkpoint(folder / "step_000001")
    filler.unlink()
    verify_checkpoint(save(folder, 2, rows=2048))


def test_on_a_full_disk_no_call_is_admitted_so_none_is_paid_for(small_disk: Path) -> None:
    """Whatever fills the disk between the look before a step and the step's calls."""
    ledger = Ledger(small_disk / "opd.db", month_limit_pico=10**12)
    ledger.open_budget("run", 10**12)
    filler = fill(small_disk, 0)
    with pytest.raises(StoreError) as caught:
        reserve(ledger, "one")
    assert is_disk_full(caught.value)
    filler.unlink()
    assert ledger.totals("run").reserved_pico == 0
    reserve(ledger, "one", amount=100)
    assert ledger.totals("run").reserved_pico == 100


@pytest.mark.parametrize("leave_bytes", [0, 30_000, 150_000, 250_000])
def test_a_run_on_a_disk_that_fills_up_waits_and_ends_as_its_twin(
    small_disk: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, leave_bytes: int
) -> None:
    """The database, the rollouts, the metrics and the checkpoints all lie on it; which of them fails is chance."""
    monkeypatch.setattr(blas, "load_fast_blas", lambda: FastBlas("reference", None, "not in a test"))
    monkeypatch.setattr(room, "DISK_FLOOR_BYTES", 0)  # so that writes do fail, and not only the look before them
    twin = finish(HomePaths(tmp_path / "twin"), model, tmp_path, monkeypatch, None)
    killed = finish(HomePaths(small_disk / "home"), model, tmp_path, monkeypatch, leave_bytes)
    assert killed == twin


def finish(
    home: HomePaths, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave_bytes: int | None
) -> dict[str, Any]:
    """A run in this home to its end; the disk fills up after the second step, and is freed by whoever waits for it."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Prompt {number}" for number in range(20)))
    config = config_of(model, "kl", prompts_path=str(prompts), num_training_steps=6, primary_metric="reverse_kl")
    home.prepare()
    store = RunStore(home.database)
    store.create("run", "distillation", config.model_dump(mode="json"), total_steps=6)
    store.heartbeat("run", store.claim("run"))
    row = store.get("run")
    recorder, filler = RunRecorder(store, home, row, lambda: False), home.home.parent / "filler"
    waits: list[str] = []
    record = recorder.train_metrics

    def train_metrics(line: dict[str, object]) -> None:
        record(line)
        if line["step"] == 2 and leave_bytes is not None and not waits:
            fill(home.home.parent, leave_bytes)
            waits.append("full")

    def sleep(seconds: float) -> None:
        waits.append("waited")
        filler.unlink(missing_ok=True)

    def make_room(*args: Any) -> Room:
        return Room(*args, sleep=sleep)

    monkeypatch.setattr(recorder, "train_metrics", train_metrics)
    monkeypatch.setattr(jobs, "Room", make_room)
    end = distil(JobContext(row, home, store, recorder))
    assert end.state == "completed" and store.get("run").step == 6
    assert waits[:1] == ([] if leave_bytes is None else ["full"])
    if leave_bytes == 0:
        assert "waited" in waits
    files = [home.metrics("run", series) for series in ("train", "eval")]
    files += [home.rollouts("run", split) for split in ("train", "val")]
    return {path.name: list(map(alike, JsonlFile(path).read())) for path in files} | tensor_hashes(
        home.checkpoints("run")
    )


def test_a_flush_that_fails_is_no_checkpoint(tmp_path: Path) -> None:
    """At each of them: what is not flushed is not saved, and the earlier one stands."""
    flushes = 0

    def count(path: Path) -> None:
        nonlocal flushes
        flushes += 1

    save(tmp_path / "count", 1)
    save(tmp_path / "count", 2, flush=count)
    assert flushes >= 7
    for bad in range(1, flushes + 1):
        folder, left = tmp_path / str(bad), bad

        def flush(path: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        save(folder, 1)
        with pytest.raises(CheckpointError, match="Input/output error") as caught:
            save(folder, 2, flush=flush)
        assert not is_disk_full(caught.value)
        verify_checkpoint(folder / "step_000001")
        for path in list_checkpoints(folder):  # the last flush is of the folder: then the new one may stand as well
            verify_checkpoint(path)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("bad", [1, 3, 6, 14, 23, 30])
def test_a_run_whose_disk_fails_to_flush_ends_without_a_claim_and_resumes_as_its_twin(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    config = config_of(model, "kl")
    go(config, tmp_path / "twin")
    real, left = os.fsync, bad

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises((CheckpointError, OSError), match="Input/output error"):
            go(config, tmp_path / "bad")
    for path in list_checkpoints(tmp_path / "bad" / "run"):
        load_checkpoint(path)
    outcome, _ = go(config, tmp_path / "bad")
    assert outcome is not None and remains(tmp_path / "bad") == remains(tmp_path / "twin")


def test_from_the_checkpoint_before_a_damaged_one_a_run_ends_as_its_twin(tmp_path: Path, model: Path) -> None:
    config = config_of(model, "kl", num_training_steps=8)
    _, observer = go(config, tmp_path / "twin")
    go(config, tmp_path / "run", lives=observer.calls - 6)
    found = list_checkpoints(tmp_path / "run" / "run")
    damaged = found[-1] / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    before = int(found[-2].name.removeprefix("step_"))
    with pytest.raises(CheckpointError, match=f"optimizer.safetensors.*from_step {before}"):
        go(config, tmp_path / "run")
    set_aside_after(tmp_path / "run" / "run", before)
    outcome, again = go(config, tmp_path / "run")
    assert outcome is not None and f"resumed from {found[-2].name}" in again.messages
    assert remains(tmp_path / "run") == remains(tmp_path / "twin")
