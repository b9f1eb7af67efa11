"""Teachers: what scores or guides the student's own rollouts."""

from __future__ import annotations

from opd_core.config import RunConfig
from opd_core.errors import ConfigError
from opd_core.teachers.local import LocalTeacher, build_local_teacher
from opd_core.training.lora import LoadedBase


def build_teacher(config: RunConfig, base: LoadedBase) -> LocalTeacher:
    """The teacher that `config.teacher_kind` names; see the builders for what they raise."""
    if config.teacher_kind == "local":
        return build_local_teacher(config, base)
    raise ConfigError(
        f"teacher_kind {config.teacher_kind!r} is not available in this version; use 'local'.", field="teacher_kind"
    )
