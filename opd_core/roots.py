"""Which folders a run may read from and write to: every path from outside passes here before it is opened."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opd_core.errors import PathError
from opd_core.types import clean_text, plain_name

MAX_NAMES = 2_000


@dataclass(frozen=True)
class Roots:
    """The allowed folders, resolved once.

    `allowed` may be read (models, adapters, prompts), `outputs` may be written (OPD_HOME, OPD_CHECKPOINT_DIR,
    OPD_CACHE_DIR). Symbolic links are followed only where they end inside a root.
    """

    allowed: tuple[Path, ...]
    outputs: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls,
        home: Path,
        extra: Iterable[Path] = (),
        user_home: Path | None = None,
        outputs: Iterable[Path] = (),
    ) -> Roots:
        """OPD_HOME, the hub cache, the human's `extra` folders (OPD_ROOTS) and, over stdio, `user_home`."""
        readable = [home, hub_cache(), *extra, *([user_home] if user_home else []), *outputs]
        return cls(_resolved(readable), _resolved([home, *outputs]))

    def check(self, path: str | Path, field: str, kind: Literal["folder", "file"]) -> Path:
        """Return the resolved path of an existing folder or regular file inside an allowed root.

        Raises:
            PathError: not absolute, outside the roots, missing, or of the other kind.
        """
        found = self._inside(path, field, self.allowed, "read")
        try:
            exists, right = found.exists(), found.is_dir() if kind == "folder" else found.is_file()
        except OSError as error:
            raise PathError(f"{field} {_shown(path)} cannot be opened: {error.strerror}.", field=field) from error
        if not exists:
            near = _near(found) if self._holds(found.parent, self.allowed) else None
            hint = f"Did you mean {near} in the same folder?" if near else f"Give the path of an existing {kind}."
            raise PathError(f"{field} {_shown(path)} does not exist. {hint}", field=field)
        if not right:
            what = "a folder" if found.is_dir() else "not a folder" if kind == "folder" else "not a regular file"
            raise PathError(f"{field} {_shown(path)} is {what}; give the path of a {kind}.", field=field)
        return found

    def check_output(self, path: str | Path, field: str) -> Path:
        """Return the resolved path of a folder to write to (it need not exist yet) inside an output root.

        Raises:
            PathError: not absolute, outside the output folders, or an existing file.
        """
        found = self._inside(path, field, self.outputs, "write")
        if found.exists() and not found.is_dir():
            raise PathError(f"{field} {_shown(path)} is a file; give a folder.", field=field)
        return found

    def check_links(self, folder: Path, field: str) -> None:
        """Refuse a folder with a file whose symbolic link ends outside the roots.

        Raises:
            PathError: names the link.
        """
        for entry in folder.iterdir():
            if entry.is_symlink() and not self._holds(entry.resolve(), self.allowed):
                raise PathError(
                    f"{field}: {_shown(entry)} is a link to a place outside the allowed folders. "
                    "Copy the file itself into the folder, or add the place to OPD_ROOTS.",
                    field=field,
                )

    def _inside(self, path: str | Path, field: str, roots: tuple[Path, ...], verb: str) -> Path:
        text = str(path)
        if not text.startswith(("/", "~")) or not text.isprintable():
            raise PathError(f"{field} {_shown(text)} must be an absolute path, or begin with '~'.", field=field)
        try:
            found = Path(text).expanduser().resolve()
        except (OSError, RuntimeError) as error:
            raise PathError(f"{field} {_shown(text)} cannot be resolved: {error}.", field=field) from error
        if not self._holds(found, roots):
            listed = ", ".join(str(root) for root in roots)
            how = "OPD_ROOTS" if verb == "read" else "OPD_CHECKPOINT_DIR or OPD_CACHE_DIR"
            raise PathError(
                f"{field} {_shown(text)} lies outside the folders this server may {verb}: {listed}. "
                f"Move it there, or have a person add its folder to {how}.",
                field=field,
            )
        return found

    @staticmethod
    def _holds(path: Path, roots: tuple[Path, ...]) -> bool:
        return any(path.is_relative_to(root) for root in roots)


def hub_cache() -> Path:
    """The local cache of the model hub, by the hub client's own environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "huggingface" / "hub"


def _resolved(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(path.expanduser().resolve() for path in paths))


def _near(path: Path) -> str | None:
    """A name beside `path` that a slip of the hand would explain; hidden names are never told."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_NAMES) if not entry.name.startswith(".")]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, sorted(names), n=1, cutoff=0.75)
    return plain_name(near[0]) if near else None


def _shown(path: str | Path) -> str:
    return repr(clean_text(str(path), 300))
