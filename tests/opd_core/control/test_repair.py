"""Each kind of thing left behind is found, mended, and nothing else is touched: homes are compared byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from opd_core.checkpoint_files import CHECKPOINT_FILES, MANIFEST
from opd_core.config import parse_config
from opd_core.config_io import to_yaml
from opd_core.control.processes import try_lock
from opd_core.control.repair import Repair
from opd_core.control.repair_place import Finding
from opd_core.paths import HomePaths, older_generation, write_whole
from opd_core.state.jsonl import JsonlFile
from opd_core.state.store import RunStore
from opd_core.training.checkpoint import load_checkpoint, save_checkpoint

RUN = "run"


@pytest.fixture
def store(home: HomePaths) -> RunStore:
    """A healthy home: an ended run with two checkpoints and its files, a cancelled one, and a server's log."""
    home.prepare()
    store = RunStore(home.database)
    write_run(home, store, "other")
    store.request_stop("other")
    write_run(home, store, RUN)
    epoch = store.claim(RUN)
    for step in (1, 2):
        path = write_checkpoint(home.checkpoints(RUN), step)
        store.heartbeat(RUN, epoch, checkpoint_path=str(path), step=step)
    for name in ("adapters.safetensors", "adapter_config.json"):
        shutil.copyfile(path / name, home.checkpoints(RUN) / name)
    for file in (home.metrics(RUN, "train"), home.rollouts(RUN, "train"), home.completions(RUN)):
        JsonlFile(file).append([{"step": 1}, {"step": 2}])
    store.finish(
        RUN, "stopped", "by_user", epoch=epoch, message="", final_adapter_path=str(home.checkpoints(RUN))
    )  # fmt: skip
    for name in (RUN, "server"):
        home.log(name).write_text("a line\n")
    return store


def write_run(home: HomePaths, store: RunStore, run_id: str) -> None:
    config = parse_config({"run_id": run_id, "base_model_path": "/models/tiny", "prompts_path": "/data/prompts.txt"})
    store.create(
        run_id, "distillation", config.model_dump(mode="json"), total_steps=config.num_training_steps,
        before_commit=lambda: write_whole(home.config(run_id), to_yaml(config)),
    )  # fmt: skip


def write_checkpoint(folder: Path, step: int) -> Path:
    arrays = {"a": mx.full((2, 3), float(step))}
    return save_checkpoint(folder, step, arrays, {"lora_parameters": {}}, arrays, {"step": step})


def content(home: HomePaths) -> dict[str, bytes | None]:
    """Every path under the home with its bytes; None for a folder."""
    paths = sorted(home.home.rglob("*"))
    return {str(path.relative_to(home.home)): path.read_bytes() if path.is_file() else None for path in paths}


def changed(home: HomePaths, before: dict[str, bytes | None]) -> set[str]:
    """What is not as it was; the lock of the mended run apart."""
    after = content(home)
    names = {name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)}
    return names - {"locks/run.lock", "locks/lost.lock"}


def one(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [(str(finding.path), finding.what) for finding in findings]
    return findings[0]


def test_a_healthy_home_has_no_findings_and_stays_as_it_is_byte_for_byte(home: HomePaths, store: RunStore) -> None:
    before = content(home)
    assert Repair(home).look() == [] and Repair(home).mend() == []
    assert content(home) == before


def test_a_home_that_does_not_exist_is_not_made(home: HomePaths) -> None:
    assert Repair(home).look() == [] and Repair(home).mend() == []
    assert not home.home.exists()


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def torn_folder(home: HomePaths) -> str:
    folder = home.checkpoints(RUN) / ".tmp-step_000003-abcdef01"
    folder.mkdir()
    (folder / "adapters.safetensors").write_bytes(b"half")
    return f"checkpoints/run/{folder.name}"


def half_removed_folder(home: HomePaths) -> str:
    home.checkpoints(RUN).joinpath(".trash-step_000001-abcdef01").mkdir()
    return "checkpoints/run/.trash-step_000001-abcdef01"


def half_published_adapter(home: HomePaths) -> str:
    home.checkpoints(RUN).joinpath(".tmp-adapters-abcdef01").write_bytes(b"half")
    return "checkpoints/run/.tmp-adapters-abcdef01"


def half_written_configuration(home: HomePaths) -> str:
    name = f".run.yaml.{dead_pid()}.0123abcd.tmp"
    home.config(RUN).with_name(name).write_text("half")
    return f"configs/{name}"


@pytest.mark.parametrize(
    "leave", [torn_folder, half_removed_folder, half_published_adapter, half_written_configuration]
)
def test_what_a_cut_off_write_left_is_removed(
    home: HomePaths, store: RunStore, leave: Callable[[HomePaths], str]
) -> None:
    before = content(home)
    name = leave(home)
    assert one(Repair(home).look()).path == home.home / name
    assert (home.home / name).exists()
    Repair(home).mend()
    assert Repair(home).look() == [] and changed(home, before) == set()


def test_a_file_that_a_living_process_is_writing_is_left_alone(home: HomePaths, store: RunStore) -> None:
    path = home.config(RUN).with_name(f".run.yaml.{os.getpid()}.0123abcd.tmp")
    path.write_text("half")
    assert Repair(home).mend() == [] and path.exists()


def test_nothing_of_a_run_that_a_worker_owns_is_looked_at_or_touched(home: HomePaths, store: RunStore) -> None:
    torn_folder(home)
    store.requeue(RUN, config=store.get(RUN).config, total_steps=30)
    store.claim(RUN)
    lock = try_lock(home.run_lock(RUN))
    assert lock is not None
    before = content(home)
    assert Repair(home).mend() == []
    assert content(home) == before
    os.close(lock)


def test_a_run_that_gets_a_worker_between_the_look_and_the_mending_is_left_alone(
    home: HomePaths, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn_folder(home)
    found = Repair(home).look()
    lock = try_lock(home.run_lock(RUN))
    assert found and lock is not None
    before = content(home)
    monkeypatch.setattr(Repair, "look", lambda self: found)
    Repair(home).mend()
    assert content(home) == before
    os.close(lock)


def test_a_live_row_of_a_dead_worker_becomes_interrupted(home: HomePaths, store: RunStore) -> None:
    store.requeue(RUN, config=store.get(RUN).config, total_steps=30)
    store.claim(RUN)
    before = content(home)
    assert "preparing" in one(Repair(home).look()).what
    assert store.get(RUN).state == "preparing"
    Repair(home).mend()
    assert store.get(RUN).state == "interrupted" and Repair(home).look() == []
    assert changed(home, before) <= {"opd.db"}


def test_a_row_that_names_a_lost_checkpoint_gets_the_newest_that_is_there(home: HomePaths, store: RunStore) -> None:
    shutil.rmtree(home.checkpoints(RUN) / "step_000002")
    finding = one(Repair(home).look())
    assert finding.remedy == "name step_000001 there instead"
    Repair(home).mend()
    assert store.get(RUN).checkpoint_path == str(home.checkpoints(RUN) / "step_000001")
    assert "Repaired" in store.events(RUN)[-1].message and Repair(home).look() == []


def test_paths_to_nothing_are_taken_out_of_the_row(home: HomePaths, store: RunStore) -> None:
    shutil.rmtree(home.checkpoints(RUN))
    assert len(Repair(home).look()) == 2
    Repair(home).mend()
    row = store.get(RUN)
    assert (row.checkpoint_path, row.final_adapter_path, row.state) == (None, None, "stopped")


def test_a_disk_that_is_not_there_is_not_taken_for_a_loss(home: HomePaths, store: RunStore, tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "checkpoints"
    config = {**store.get(RUN).config, "checkpoint_dir": str(folder)}
    store.requeue(RUN, config=config, total_steps=30)
    epoch = store.claim(RUN)
    store.heartbeat(RUN, epoch, checkpoint_path=str(folder / RUN / "step_000002"), final_adapter_path=None)
    store.finish(RUN, "stopped", "by_user", epoch=epoch, message="")
    finding = one(Repair(home).look())
    assert finding.mend is None and "not mounted" in finding.remedy
    Repair(home).mend()
    assert store.get(RUN).checkpoint_path == str(folder / RUN / "step_000002")


def test_a_missing_manifest_is_written_again_as_it_was(home: HomePaths, store: RunStore) -> None:
    before = content(home)
    (home.checkpoints(RUN) / "step_000001" / MANIFEST).unlink()
    assert MANIFEST in one(Repair(home).look()).what
    Repair(home).mend()
    manifest = json.loads((home.checkpoints(RUN) / "step_000001" / MANIFEST).read_text())
    assert set(manifest) == CHECKPOINT_FILES
    assert json.loads(before[f"checkpoints/run/step_000001/{MANIFEST}"] or b"") == manifest
    assert load_checkpoint(home.checkpoints(RUN) / "step_000001").state == {"step": 1}


@pytest.mark.parametrize("name", sorted(CHECKPOINT_FILES))
def test_a_checkpoint_whose_files_are_not_complete_gets_no_manifest_but_another_name(
    home: HomePaths, store: RunStore, name: str
) -> None:
    folder = home.checkpoints(RUN) / "step_000002"
    (folder / MANIFEST).unlink()
    os.truncate(folder / name, (folder / name).stat().st_size - 4)
    assert {finding.path for finding in Repair(home).look()} == {folder}
    Repair(home).mend()
    aside = home.checkpoints(RUN) / "damaged-step_000002"
    assert not folder.exists() and {path.name for path in aside.iterdir()} == CHECKPOINT_FILES
    assert store.get(RUN).checkpoint_path == str(home.checkpoints(RUN) / "step_000001")


def test_a_damaged_checkpoint_is_renamed_and_the_one_before_it_named(home: HomePaths, store: RunStore) -> None:
    file = home.checkpoints(RUN) / "step_000002" / "adapters.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "adapters.safetensors is not what was written" in one(Repair(home).look()).what
    Repair(home).mend()
    assert (home.checkpoints(RUN) / "damaged-step_000002").is_dir()
    assert store.get(RUN).checkpoint_path == str(home.checkpoints(RUN) / "step_000001")
    assert Repair(home).look() == []


@pytest.mark.parametrize(("tail", "left"), [(b'{"step": 3, "kl', b""), (b'{"step": 3}', b'{"step": 3}\n')])
def test_a_torn_line_is_cut_off_or_ended(home: HomePaths, store: RunStore, tail: bytes, left: bytes) -> None:
    path = home.metrics(RUN, "train")
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert one(Repair(home).look()).path == path
    Repair(home).mend()
    assert path.read_bytes() == whole + left and Repair(home).look() == []


def test_a_long_torn_line_is_cut_at_its_beginning(home: HomePaths, store: RunStore) -> None:
    path = home.rollouts(RUN, "train")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"completion": "' + b"x" * 200_000)
    Repair(home).mend()
    assert path.read_bytes() == whole


def test_what_a_teacher_wrote_is_never_cut(home: HomePaths, store: RunStore) -> None:
    path = home.completions(RUN)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"text": "half')
    Repair(home).mend()
    assert path.read_bytes() == whole + b'{"text": "half\n' and Repair(home).look() == []


def test_a_lost_configuration_is_written_again_from_the_row(home: HomePaths, store: RunStore) -> None:
    before = content(home)
    home.config(RUN).unlink()
    assert one(Repair(home).look()).path == home.config(RUN)
    Repair(home).mend()
    assert changed(home, before) == set()


def test_files_of_no_run_are_moved_aside_and_kept(home: HomePaths, store: RunStore) -> None:
    before = content(home)
    home.log("lost").write_text("a log")
    home.config("lost").write_text("a: 1\n")
    assert {finding.path for finding in Repair(home).look()} == {home.log("lost"), home.config("lost")}
    Repair(home).mend()
    home.log("lost").write_text("another")
    Repair(home).mend()
    moved = {"set_aside", *(f"set_aside/{name}" for name in ("lost.log", "lost.yaml", "lost.log.1"))}
    assert changed(home, before) == moved
    assert (home.home / "set_aside" / "lost.log").read_text() == "a log"


def test_a_run_whose_row_was_lost_can_be_resumed_from_its_checkpoints(home: HomePaths, store: RunStore) -> None:
    row = store.get(RUN)
    store.close()
    home.database.unlink()
    before = content(home)
    remedies = [finding.remedy for finding in Repair(home).look() if finding.run_id == RUN]
    assert len(remedies) == 1 and "interrupted at step 2" in remedies[0]
    Repair(home).mend()
    again = RunStore(home.database).get(RUN)
    assert (again.state, again.step, again.checkpoint_path) == ("interrupted", 2, row.checkpoint_path)
    assert again.config == row.config and again.total_steps == row.total_steps
    assert RunStore(home.database).requeue(RUN, config=row.config, total_steps=30).state == "queued"
    assert changed(home, before) - {"opd.db", "locks/other.lock"} == {
        *("set_aside", "set_aside/other.yaml", "configs/other.yaml"),
    }


def test_checkpoints_of_no_run_without_a_configuration_are_named_and_kept(home: HomePaths, store: RunStore) -> None:
    """They may be somebody's own: not even a damaged one is touched."""
    (write_checkpoint(home.checkpoints("lost"), 1) / MANIFEST).unlink()
    before = content(home)
    assert one(Repair(home).look()).mend is None
    Repair(home).mend()
    assert content(home) == before


def test_the_older_part_of_a_log_is_no_orphan_while_its_run_is_known_and_else_goes_aside_with_it(
    home: HomePaths, store: RunStore
) -> None:
    for name in (RUN, "lost", "half"):
        older_generation(home.log(name)).write_text("older\n")
    home.log("lost").write_text("newer\n")
    found = {(finding.run_id, finding.path.name) for finding in Repair(home).look()}
    assert found == {("lost", "lost.log"), ("lost", "lost.log.1"), ("half", "half.log.1")}
    Repair(home).mend()
    assert Repair(home).look() == []
    assert older_generation(home.log(RUN)).read_text() == "older\n"
    aside = {path.name for path in (home.home / "set_aside").iterdir()}
    assert aside == {"lost.log", "lost.log.1", "half.log.1"}
