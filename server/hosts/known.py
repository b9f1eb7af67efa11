"""The programs that can start this server, where each keeps its list of servers, and what it must be told.

Hosts start a server with next to no environment, in any folder: every path they are told is absolute.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.errors import ConfigError

ENTRY_NAME = "opd"


@dataclass(frozen=True)
class Host:
    """One program. `folder` is below the folder for programs' settings on each platform, `file` below the user's home.

    `key` is where its file lists servers; `typed` says that an entry names its transport; `by_command` says that its
    file is its own, so that only its command line changes it.
    """

    name: str
    title: str
    key: str = "mcpServers"
    folder: str | None = None
    file: str = ""
    typed: bool = False
    by_command: bool = False
    reload: str = "Start it again, so that it reads the file."


HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host(
            "claude-desktop",
            "Claude Desktop",
            folder="Claude",
            file="claude_desktop_config.json",
            reload="Quit Claude Desktop fully (closing its window is not enough) and start it again.",
        ),
        Host(
            "claude-code",
            "Claude Code",
            file=".claude.json",
            typed=True,
            by_command=True,
            reload="Start a new Claude Code session; /mcp shows the server.",
        ),
        Host(
            "cursor",
            "Cursor",
            file=".cursor/mcp.json",
            typed=True,
            reload="Start Cursor again and switch the server on in its MCP settings.",
        ),
        Host(
            "vscode",
            "VS Code",
            key="servers",
            folder="Code/User",
            file="mcp.json",
            typed=True,
            reload="In VS Code run the command 'MCP: List Servers' and start the server.",
        ),
    )
}
"""Every host by the name that `opd install` takes."""


def config_path(host: Host, environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The file in which a host of this user keeps its servers; it need not exist.

    Args:
        environment: HOME, XDG_CONFIG_HOME and CLAUDE_CONFIG_DIR of the user.
        platform: as `sys.platform` names it.

    Raises:
        ConfigError: a platform for which the place is not known.
    """
    if platform not in ("darwin", "linux"):
        raise ConfigError(
            f"opd install knows the places of hosts on macOS and Linux; {platform} is not supported yet. "
            "With --print it shows what to paste into the host's own settings."
        )
    home = Path(environment.get("HOME") or Path.home())
    if host.folder is not None:
        xdg = environment.get("XDG_CONFIG_HOME", "")
        linux = Path(xdg) if xdg.startswith("/") else home / ".config"
        return (home / "Library/Application Support" if platform == "darwin" else linux) / host.folder / host.file
    moved = environment.get("CLAUDE_CONFIG_DIR", "") if host.by_command else ""
    return (Path(moved) if moved.startswith("/") else home) / host.file


def server_command() -> list[str]:
    """How a host starts the server: the `opd` beside this Python, else the module itself."""
    script = Path(sys.executable).with_name("opd")
    return [str(script), "serve"] if script.is_file() else [sys.executable, "-P", "-m", "server.cli", "serve"]


def new_entry(host: Host, home: Path, command: list[str]) -> dict[str, Any]:
    """What a host must be told to start the server; never a key, never a value of the environment but OPD_HOME."""
    entry: dict[str, Any] = {"type": "stdio"} if host.typed else {}
    return {**entry, "command": command[0], "args": command[1:], "env": {"OPD_HOME": str(home)}}


def entry_in(host: Host, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """This server's entry in a host's configuration, if there is one."""
    servers = config.get(host.key)
    entry = servers.get(ENTRY_NAME) if isinstance(servers, dict) else None
    return entry if isinstance(entry, dict) else None


def entry_home(entry: Mapping[str, Any]) -> str | None:
    """The OPD_HOME that an entry sets, if it sets one."""
    environment = entry.get("env")
    value = environment.get("OPD_HOME") if isinstance(environment, dict) else None
    return value if isinstance(value, str) and value else None
