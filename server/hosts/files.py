"""Reading and changing the JSON file of a host: what stands there stays, what cannot be understood is not touched."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.errors import ConfigError
from opd_core.paths import write_whole
from opd_core.types import clean_text

MAX_FILE_BYTES = 10_000_000
MAX_BACKUPS = 100


class NotPlainJSONError(ConfigError):
    """A host's file holds something that would be lost if it were written again."""


@dataclass(frozen=True)
class HostFile:
    """A host's file as it was read; `content` is None where there is none."""

    path: Path
    content: bytes | None
    config: dict[str, Any]


def read_host_file(path: Path) -> HostFile:
    """Read a host's file; one that is missing or empty is an empty object. A symbolic link is followed.

    Raises:
        NotPlainJSONError: comments, trailing commas, a name given twice, not an object, not JSON at all.
        ConfigError: it cannot be read.
    """
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a regular file.")
        if path.exists() and path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; that is no list of servers.")
        content = path.read_bytes() if path.exists() else None
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return HostFile(path, content, _parse(path, content or b""))


def write_host_file(file: HostFile, config: dict[str, Any]) -> Path | None:
    """Replace a host's file whole, with mode 0600, and keep the old one beside it; returns the copy's path.

    Raises:
        ConfigError: it changed since it was read, or it cannot be written.
    """
    try:
        backup = None if file.content is None else _keep(file.path, file.content)
        if (file.path.read_bytes() if file.path.exists() else None) != file.content:
            raise ConfigError(f"{file.path} was changed by another program just now. Close that program and try again.")
        write_whole(file.path, _text(config, file.content or b""))
    except OSError as error:
        raise ConfigError(f"{file.path} cannot be written: {error.strerror}. Nothing was changed.") from error
    return backup


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8-sig")
        config = json.loads(
            text if text.strip() else "{}", object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        where = clean_text(str(error), 120)
        raise NotPlainJSONError(
            f"{path} is not plain JSON ({where}). Perhaps it has comments or trailing commas, which writing it again "
            "would lose, so it was left as it is."
        ) from error
    if not isinstance(config, dict):
        raise NotPlainJSONError(f"{path} holds a JSON {type(config).__name__}, not an object. It was left as it is.")
    return config


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    if math.isfinite(value := float(number)):
        return value
    raise ValueError(f"the number {number} is too large")


def _text(config: dict[str, Any], old: bytes) -> str:
    """The file's new text, indented as the old one was."""
    found = re.search(rb"\n([ \t]+)\S", old)
    indent = found.group(1).decode() if found else "  "
    text = json.dumps(config, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which JSON can only say as an escape
        text = json.dumps(config, indent=indent, allow_nan=False) + "\n"
    return text


def _keep(path: Path, content: bytes) -> Path:
    """A copy beside the file under a name that is free, for the user alone."""
    for number in range(1, MAX_BACKUPS):
        backup = path.with_name(f"{path.name}.opd-backup{number}")
        try:
            descriptor = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return backup
    raise ConfigError(f"There are {MAX_BACKUPS - 1} old copies beside {path}. Remove some and try again.")
