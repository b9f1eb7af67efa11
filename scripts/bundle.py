"""Make the desktop extension: one .mcpb file that Claude Desktop installs with a click.

An .mcpb is a zip with a manifest. Its server is of type `uv` (manifest 0.4): the host's uv reads the pyproject.toml in
it and installs Python and the packages when the extension is first started. The manifest is made from the same texts
the server shows, so the two cannot differ. The same sources give the same bytes.

    python -m scripts.bundle [FOLDER]
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opd_core import __version__
from opd_core.settings import KEY_VARIABLE
from server.app import SERVER_NAME
from server.prompts import PROMPTS
from server.protocol.texts import TOOLS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("server", "opd_core")
ENTRY_POINT = "server/cli.py"
# A zip cannot say an earlier time; no file's own time may change the bytes.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
LONG_DESCRIPTION = """\
A student model on this machine writes answers, a teacher (a larger local model, the student itself with instructions, \
or Claude) scores or guides them, and LoRA weights move towards the teacher. Held-out prompts show whether it helped. \
Training runs in the background, within a budget, and can be stopped and resumed. With a local teacher nothing leaves \
this machine."""


def manifest() -> dict[str, Any]:
    """The manifest, form 0.4: names and texts from the server itself."""
    return {
        "manifest_version": "0.4",
        "name": "opd-server",
        "display_name": "On-policy distillation",
        "version": __version__,
        "description": "Improves a small local MLX language model by on-policy distillation.",
        "long_description": LONG_DESCRIPTION,
        "author": {"name": "The opd-server authors"},
        "license": "Apache-2.0",
        "keywords": ["distillation", "fine-tuning", "LoRA", "MLX", "local models"],
        "server": {"type": "uv", "entry_point": ENTRY_POINT, "mcp_config": _start()},
        "tools": [{"name": name, "description": _first_sentence(text.description)} for name, text in TOOLS.items()],
        "tools_generated": False,
        "prompts": [_prompt(name) for name in PROMPTS],
        # what the server says is filled in with what it knows of the runs
        "prompts_generated": True,
        "user_config": _user_config(),
        "compatibility": {"platforms": ["darwin", "linux"], "runtimes": {"python": ">=3.11"}},
    }


def _start() -> dict[str, Any]:
    """How a host starts the server; it knows the folder and what the user typed."""
    return {
        "command": "uv",
        "args": ["run", "--directory", "${__dirname}", SERVER_NAME, "serve"],
        "env": {"OPD_HOME": "${user_config.opd_home}", KEY_VARIABLE: "${user_config.api_key}"},
    }


def _user_config() -> dict[str, Any]:
    """What a host asks the user. An empty default is needed: without one the placeholder itself would be the key."""
    return {
        "opd_home": {
            "type": "directory",
            "title": "Folder for models and runs",
            "description": "Everything is kept here: models, prompts, adapters, spending. Give the OPD_HOME of an "
            "earlier installation to go on with its runs.",
            "default": "${HOME}/OnPolicyDistill",
            "required": True,
        },
        "api_key": {
            "type": "string",
            "title": "Anthropic API key (optional)",
            "description": "Only for a Claude teacher, which costs money. Leave it empty for local teachers, or when "
            f"the file .env in the folder above has {KEY_VARIABLE}.",
            "default": "",
            "sensitive": True,
            "required": False,
        },
    }


def _first_sentence(text: str) -> str:
    return f"{text.split('. ', 1)[0].rstrip('.')}."


def _prompt(name: str) -> dict[str, Any]:
    """A prompt's entry. Its text is made by the server when it is asked; the form wants one here all the same."""
    title, description, _, arguments = PROMPTS[name]
    given = "".join(f"\n{argument.name}: ${{arguments.{argument.name}}}" for argument in arguments)
    return {
        "name": name,
        "description": description,
        "arguments": [argument.name for argument in arguments],
        "text": f"{title}. {description}{given}",
    }


def write_bundle(folder: Path, root: Path = ROOT) -> Path:
    """Write `opd-server-VERSION.mcpb` into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"opd-server-{__version__}.mcpb"
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, "manifest.json", json.dumps(manifest(), ensure_ascii=False, indent=2).encode() + b"\n")
        _add(archive, "pyproject.toml", _project(root).encode())
        for file in _files(root):
            _add(archive, file.relative_to(root).as_posix(), file.read_bytes())
    return path


def _project(root: Path) -> str:
    """The project's file with the versions that were tested, so that uv installs those and not what is newest."""
    lines = [line.strip() for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    pinned = json.dumps([line for line in lines if line and not line.startswith("#")], indent=2)
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    return f"{project}\n[tool.uv]\nconstraint-dependencies = {pinned}\n"


def _files(root: Path) -> Iterator[Path]:
    """What the wheel holds, and the description that building it needs."""
    yield root / "README.md"
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith("."):
                yield file


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, ZIP_EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def main() -> None:
    """Write the bundle and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dist"), help="where to write it (default: dist)")
    path = write_bundle(parser.parse_args().folder)
    print(f"{path} ({path.stat().st_size / 1e3:.0f} kB). Open it with Claude Desktop to install it.")


if __name__ == "__main__":
    main()
