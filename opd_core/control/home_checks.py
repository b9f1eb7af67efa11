"""What a kill, a full disk or a person may have left in a home, one check a kind, with what would mend it.

A check only looks. What it offers as mending deletes nothing but what was never published or was already thrown away
(`.tmp…`, `.trash…`), and half of a line that no reader reads; everything else is moved aside or written anew.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opd_core.checkpoint_files import (
    CHECKPOINT_FILES,
    MANIFEST,
    TENSOR_FILES,
    checkpoint_step,
    fingerprint_file,
    list_checkpoints,
    verify_checkpoint,
)
from opd_core.config import RunConfig, parse_config
from opd_core.config_io import read_config, to_yaml
from opd_core.control.processes import process_identity
from opd_core.control.repair_place import Finding, Place
from opd_core.errors import CheckpointError, OPDError
from opd_core.paths import fsync_path, older_generation, write_json, write_whole
from opd_core.state.mending import correct, readmit
from opd_core.state.torn_lines import end_line, end_or_cut_line, is_torn
from opd_core.tensor_files import read_exact_header, read_json_object

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
"""The name under which `paths.write_whole` writes a file before it replaces the old one."""


def leftovers(place: Place) -> Iterator[Finding]:
    """Files of a publication that was cut off, and folders whose removal was."""
    found = [*place.checkpoints.glob(".tmp-*"), *place.checkpoints.glob(".trash-*")]
    for folder, name in (
        (place.home.config(place.run_id).parent, f".{place.run_id}.yaml.*.tmp"),
        (place.home.result(place.run_id).parent, f".{place.run_id}.json.*.tmp"),
        (place.checkpoints, ".*.tmp"),
    ):
        found += [path for path in folder.glob(name) if _writer_is_gone(path)]
    for path in sorted(set(found)):
        what = "was left by a write that was cut off"
        yield Finding(place.run_id, path, what, "remove it", partial(_remove, path))


def lost_paths(place: Place) -> Iterator[Finding]:
    """Paths in the run's row that lead nowhere."""
    row = place.row
    if row is None:
        return
    for column, told, is_there in (
        ("checkpoint_path", row.checkpoint_path, lambda path: (path / MANIFEST).is_file()),
        ("final_adapter_path", row.final_adapter_path, lambda path: (path / "adapters.safetensors").is_file()),
        ("result_path", row.result_path, Path.is_file),
    ):
        if told is None or is_there(Path(told)):
            continue
        what = f"is named in the run's row ({column}), but is not there or not complete"
        if column != "result_path" and place.is_out_of_reach:
            remedy = f"bring {place.checkpoints.parent} back: it is missing as a whole, perhaps a disk not mounted"
            yield Finding(place.run_id, Path(told), what, remedy, None)
            continue
        newest = _newest_sound(place.checkpoints) if column == "checkpoint_path" else None
        value = None if newest is None else str(newest)
        remedy = f"name {newest.name} there instead" if newest else "name nothing there"

        def mend(column: str = column, value: str | None = value, told: str = told) -> None:
            correct(place.database, row, {column: value}, f"Repaired: {column} was {told}, which is not there.")

        yield Finding(place.run_id, Path(told), what, remedy, mend)


def lost_configuration(place: Place) -> Iterator[Finding]:
    """The configuration file of a run that has its row: the row holds the same in full."""
    if place.row is None or place.row.kind == "comparison" or place.home.config(place.run_id).exists():
        return
    try:
        text = to_yaml(parse_config(place.row.config))
    except OPDError:  # of an older version, with fields that are no more
        return
    path = place.home.config(place.run_id)
    remedy = "write it again from the run's row"
    yield Finding(place.run_id, path, "is missing", remedy, partial(write_whole, path, text))


def bad_checkpoints(place: Place) -> Iterator[Finding]:
    """Checkpoints that are not what their manifest says, or have none: a resume refuses them."""
    if place.row is None:  # nobody resumes it; perhaps it is no run's at all
        return
    for path in list_checkpoints(place.checkpoints):
        try:
            verify_checkpoint(path)
            continue
        except CheckpointError as error:
            problem = str(error)
        if not (path / MANIFEST).exists() and _is_complete(path):
            yield Finding(
                place.run_id, path, f"has no {MANIFEST}, so a resume refuses it",
                "write it from the files, which are complete in form", partial(_write_manifest, path),
            )  # fmt: skip
            continue
        yield Finding(
            place.run_id, path, f"is not sound: {problem.rstrip('.')}",
            f"rename it to damaged-{path.name}; a resume then goes on from the checkpoint before it",
            partial(_rename, path, f"damaged-{path.name}"),
        )  # fmt: skip


def torn_lines(place: Place) -> Iterator[Finding]:
    """A last line without its end. What a teacher wrote was paid for: there the line is only ended."""
    if place.row is None:
        return
    for path, is_paid in place.append_only_files():
        if not is_torn(path):
            continue
        remedy = "end the line" if is_paid else "end the line if it is complete, else cut the half line off"
        yield Finding(
            place.run_id, path, "ends in the middle of a line", remedy,
            partial(end_line if is_paid else end_or_cut_line, path),
        )  # fmt: skip


def without_a_run(place: Place) -> Iterator[Finding]:
    """Files of a run that the database does not know; one with its configuration and a checkpoint is a run again."""
    if place.row is not None:
        return
    newest, config = _newest_sound(place.checkpoints), _configuration(place)
    if newest is not None and config is not None:
        message = "Its row was lost; recorded again by opd doctor --repair from its configuration and checkpoints."
        step = checkpoint_step(newest)
        data = config.model_copy(update={"run_id": place.run_id}).model_dump(mode="json")
        yield Finding(
            place.run_id, place.checkpoints, "holds checkpoints of a run that the database does not know",
            f"record run {place.run_id} again, interrupted at step {step}; what it had spent is not known any more",
            partial(readmit, place.database, place.run_id, data, step, str(newest), message),
        )  # fmt: skip
        return
    if place.checkpoints.is_dir():
        what = "belongs to no run of the database and has no usable configuration beside it"
        yield Finding(place.run_id, place.checkpoints, what, "remove it by hand if it is not needed", None)
        return
    log = place.home.log(place.run_id)
    for path in (place.home.config(place.run_id), log, older_generation(log)):
        if path.is_file():
            yield Finding(
                place.run_id, path, "belongs to no run of the database", "move it to set_aside", place.aside(path)
            )


CHECKS = (leftovers, bad_checkpoints, lost_paths, lost_configuration, torn_lines)
"""In this order: a checkpoint that got its manifest again is one that a row may name."""


def _newest_sound(folder: Path) -> Path | None:
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except CheckpointError:
            continue
        return path
    return None


def _is_complete(path: Path) -> bool:
    """Whether each file of a checkpoint without a manifest is there and whole in form."""
    try:
        for name in CHECKPOINT_FILES:
            if name in TENSOR_FILES:
                read_exact_header(path / name)
            else:
                read_json_object(path / name)
    except (OSError, OPDError):
        return False
    return True


def _write_manifest(path: Path) -> None:
    write_json(path / MANIFEST, {name: fingerprint_file(path / name) for name in sorted(CHECKPOINT_FILES)})


def _configuration(place: Place) -> RunConfig | None:
    try:
        return read_config(place.home.config(place.run_id))
    except OPDError:
        return None


def _writer_is_gone(path: Path) -> bool:
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and process_identity(int(match["pid"])) is None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))
    fsync_path(path.parent)
