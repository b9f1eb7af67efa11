"""The part of the preflight that looks at models: base, incoming adapter, teacher, and whether they fit the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from opd_core.adapter_files import AdapterInfo, check_adapter_fits, layer_names, read_adapter
from opd_core.config import RunConfig
from opd_core.control.findings import Findings
from opd_core.control.machine import GB, free_disk_bytes, guess_device, read_memory
from opd_core.control.preflight.values import NEW_ADAPTER_RANK, NEW_ADAPTER_SCALE
from opd_core.errors import CompatibilityError
from opd_core.model_files import ModelInfo, read_model, resolve_model
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.tokenizer_files import same_tokenizer
from opd_core.types import plain_name

MIN_DISK_BYTES = 100_000_000
LOW_DISK_BYTES = 2_000_000_000


def read_named_model(
    name: str,
    field_name: Literal["base_model_path", "teacher_model_id"],
    home: HomePaths,
    roots: Roots,
    findings: Findings,
) -> ModelInfo | None:
    """The model that a field names, its path decided; `None` when it cannot be used."""
    path = findings.attempt(resolve_model, name, home, roots, field_name)
    if path is None:
        return None
    findings.decided[field_name] = str(path)
    return findings.attempt(read_model, path)


def check_adapter(config: RunConfig, base: ModelInfo | None, roots: Roots, findings: Findings) -> AdapterInfo | None:
    """An incoming adapter keeps its own shape; a new one gets the defaults."""
    if config.student_adapter_path is None:
        if config.lora_rank is None:
            findings.decided["lora_rank"] = NEW_ADAPTER_RANK
        if config.lora_scale is None:
            findings.decided["lora_scale"] = NEW_ADAPTER_SCALE
        if config.lora_keys is not None and base is not None:
            _check_lora_keys(config.lora_keys, base, findings)
        return None
    path = findings.attempt(roots.check, config.student_adapter_path, "student_adapter_path", "folder")
    if path is None:
        return None
    findings.attempt(roots.check_links, path, "student_adapter_path")
    adapter = findings.attempt(read_adapter, path)
    if adapter is None:
        return None
    _keep_adapter_shape(config, adapter, findings)
    if base is not None:
        findings.attempt(check_adapter_fits, path, base.path)
        if adapter.base_model and Path(adapter.base_model).name != base.path.name:
            findings.warnings.append(
                f"The adapter says it was trained on {plain_name(adapter.base_model)}, not on {base.path.name}; its "
                "shapes fit, but its weights mean something on its own base model only."
            )
    return adapter


def _check_lora_keys(keys: tuple[str, ...], base: ModelInfo, findings: Findings) -> None:
    known = findings.attempt(layer_names, base.path)
    unknown = [key for key in keys if known is not None and key not in known]
    if unknown and known is not None:
        findings.refuse(
            f"lora_keys names {unknown[0]!r}, which {base.name} has not; its layers are {', '.join(known)}.",
            "lora_keys",
        )


def _keep_adapter_shape(config: RunConfig, adapter: AdapterInfo, findings: Findings) -> None:
    own = {
        "lora_rank": adapter.rank,
        "lora_scale": adapter.scale,
        "lora_keys": adapter.keys,
        "use_dora": adapter.fine_tune_type == "dora",
    }
    for name, value in own.items():
        asked = getattr(config, name)
        same = set(asked) == set(adapter.keys or ()) if name == "lora_keys" and asked else asked == value
        if asked and not same:
            findings.refuse(
                f"{name} {asked!r} is for a new adapter; the one of student_adapter_path keeps its own, {value!r}. "
                f"Leave {name} out, or leave student_adapter_path out to train a new adapter.",
                name,
            )
    findings.decided |= {"student_adapter_path": str(adapter.path), **own}


def check_teacher(
    config: RunConfig, base: ModelInfo | None, home: HomePaths, roots: Roots, findings: Findings
) -> ModelInfo | None:
    """A teacher model other than the base; `None` when the base itself teaches, which needs a context of its own."""
    teacher = None
    if config.teacher_kind != "local":
        return None
    if config.teacher_model_id is not None:
        teacher = read_named_model(config.teacher_model_id, "teacher_model_id", home, roots, findings)
        if teacher is None or base is None:
            return teacher
    if teacher is not None and base is not None and teacher.path != base.path:
        _check_tokenizers(teacher, base, findings)
        return teacher
    findings.decided["teacher_model_id"] = None
    if config.teacher_system_prompt is None and not config.teacher_examples:
        findings.refuse(
            "The teacher would be the student itself, so there is nothing to learn. Give the teacher a context of its "
            "own (teacher_system_prompt or teacher_examples), or name a larger model of the same tokenizer in "
            "teacher_model_id.",
            "teacher_model_id",
        )
    return None


def _check_tokenizers(teacher: ModelInfo, base: ModelInfo, findings: Findings) -> None:
    reason = findings.attempt(same_tokenizer, base.path, teacher.path)
    if reason is not None:
        findings.problems.append(
            CompatibilityError(
                f"The teacher {teacher.name!r} cannot score the student's tokens: {reason}. Choose a teacher of the "
                f"same model family as {base.name!r}; other tokenizers are not in this version.",
                field="teacher_model_id",
            )
        )


def check_machine(home: HomePaths, models: list[ModelInfo], findings: Findings) -> None:
    """A rough look at memory and disk: refuse what cannot fit, warn about what is tight."""
    on_cpu = guess_device() == "cpu"
    needed = sum(4 * model.num_parameters if on_cpu else model.bytes for model in models)
    memory = read_memory()
    if memory.total_bytes is not None and needed > memory.total_bytes:
        findings.refuse(
            f"The weights alone need {needed / GB:.1f} GB of memory, more than the {memory.total_bytes / GB:.1f} GB of "
            "this machine. Choose a smaller base model or teacher.",
            "base_model_path",
        )
    elif memory.available_bytes is not None and 1.5 * needed > memory.available_bytes:
        findings.warnings.append(
            f"Memory is tight: the weights need {needed / GB:.1f} GB and {memory.available_bytes / GB:.1f} GB are free."
        )
    free = free_disk_bytes(home.home)
    if free is not None and free < MIN_DISK_BYTES:
        findings.refuse(
            f"Only {free / 1e6:.0f} MB of disk are free at {home.home}; free at least 2 GB.", "checkpoint_dir"
        )
    elif free is not None and free < LOW_DISK_BYTES:
        findings.warnings.append(f"Only {free / GB:.1f} GB of disk are free at {home.home}.")
