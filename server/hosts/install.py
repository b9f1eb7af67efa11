"""`opd install HOST`: enter this server into the list of a host, and say what was changed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_core.errors import ConfigError
from opd_core.paths import default_home
from opd_core.settings import KEY_VARIABLE
from opd_core.types import clean_text
from server.hosts.files import NotPlainJSONError, read_host_file, write_host_file
from server.hosts.known import ENTRY_NAME, HOSTS, Host, config_path, entry_home, entry_in, new_entry, server_command

COMMAND_SECONDS = 60
OWN_KEYS = ("type", "command", "args", "env")
REMOVE_WORDS = ("mcp", "remove", "--scope", "user", ENTRY_NAME)
Run = Callable[[Sequence[str]], tuple[int, str]]


def install(
    name: str,
    home: Path | None = None,
    *,
    print_only: bool = False,
    environment: Mapping[str, str] | None = None,
    platform: str = sys.platform,
    run: Run | None = None,
) -> list[str]:
    """Enter the server into a host's list, or only say how; returns the lines for the person.

    Args:
        name: one of HOSTS.
        home: the OPD_HOME to use; None: the environment's, else the one an earlier entry has, else the default.
        run: what runs a host's own command; returns its exit code and output.

    Raises:
        ConfigError: the file cannot be changed without a loss, or the host's command failed; says what to paste.
    """
    host = HOSTS[name]
    environment = os.environ if environment is None else environment
    if print_only:
        return _instructions(host, _wanted(host, None, home, environment), environment, platform)
    path = config_path(host, environment, platform)
    try:
        file = read_host_file(path)
    except NotPlainJSONError as error:
        if host.by_command:  # the file is the host's own; whatever it is like, the host can read it
            return _by_command(host, None, _wanted(host, None, home, environment), environment, run or _run)
        wanted = _wanted(host, None, home, environment)
        raise ConfigError(f"{error} Put this into it under {host.key!r}:\n{_snippet({ENTRY_NAME: wanted})}") from error
    old = entry_in(host, file.config)
    wanted = _wanted(host, old, home, environment)
    if old == wanted:
        return [f"{host.title} has the server already, in {file.path}; nothing was changed.", *_advice(host, wanted)]
    if host.by_command:
        return _by_command(host, old, wanted, environment, run or _run)
    config = _with_entry(host, file.path, file.config, wanted)
    is_new = not file.path.parent.exists()
    backup = write_host_file(file, config)
    others = [clean_text(other, 60) for other in config[host.key] if other != ENTRY_NAME]
    return [
        f"{file.path}: the server {ENTRY_NAME!r} was {'changed' if old else 'added'} for {host.title}.",
        *_changes(old, wanted),
        *([f"Kept as they were: {', '.join(others)}."] if others else []),
        *([f"The file as it was before: {backup}"] if backup else []),
        *([f"Its folder was not there before: is {host.title} installed?"] if is_new else []),
        host.reload,
        *_advice(host, wanted),
    ]


def _wanted(
    host: Host, old: dict[str, Any] | None, home: Path | None, environment: Mapping[str, str]
) -> dict[str, Any]:
    """The entry to be: what a person added to an earlier one stays."""
    old = old if old and "command" in old else {}
    if home is None and not environment.get("OPD_HOME"):
        chosen = Path(entry_home(old) or default_home())
    else:
        chosen = home or Path(environment["OPD_HOME"])
    new = new_entry(host, chosen.expanduser().absolute(), server_command())
    kept = old.get("env")
    return {**old, **new, "env": {**(kept if isinstance(kept, dict) else {}), **new["env"]}}


def _with_entry(host: Host, path: Path, config: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The configuration with our entry; the order of everything else stays."""
    servers = config.get(host.key, {})
    if not isinstance(servers, dict):
        raise ConfigError(f"{host.key!r} in {path} is not an object, so no server can be added. Correct it first.")
    return {**config, host.key: {**servers, ENTRY_NAME: entry}}


def _by_command(
    host: Host, old: dict[str, Any] | None, wanted: dict[str, Any], environment: Mapping[str, str], run: Run
) -> list[str]:
    """Through the host's own command line, since its file is its own; without the command, say what to type."""
    program = shutil.which("claude", path=environment.get("PATH"))
    if program is None:
        return ["The command `claude` was not found, so nothing was changed. Type this where it is:", _line(wanted)]
    if old is not None and (foreign := _foreign(old)):
        return [
            f"{host.title} has a server {ENTRY_NAME!r} with values that are not from here ({foreign}). On a command "
            "line others could read them, so nothing was changed. Type this, with your own values for each '...':",
            f"  {shlex.join(['claude', *REMOVE_WORDS])}",
            _line(wanted),
        ]
    if old is not None:
        _must(run, [program, *REMOVE_WORDS], wanted)
    try:
        _must(run, [program, *_command_words(wanted)], wanted)
    except ConfigError as error:
        raise ConfigError(f"{error}{_restored(run, program, old)}") from None
    did = "changed" if old else "added"
    return [
        f"{host.title}: the server {ENTRY_NAME!r} was {did} for all your projects.",
        *_changes(old, wanted),
        host.reload,
        *_advice(host, wanted),
    ]


def _foreign(entry: dict[str, Any]) -> str:
    """The names of what this program did not put into an entry; their values may be secret."""
    env = entry.get("env", {})
    names = [name for name in entry if name not in OWN_KEYS]
    names += [name for name in env if name != "OPD_HOME"] if isinstance(env, dict) else ["env"]
    return clean_text(", ".join(names), 200)


def _restored(run: Run, program: str, old: dict[str, Any] | None) -> str:
    """Put the removed entry back; what to add to the error."""
    if old is None:
        return ""
    code, _ = run([program, *_command_words(old)])
    if code:
        return f"\nThe earlier entry is gone, too. To have it back, type:\n{_line(old)}"
    return "\nThe earlier entry is back as it was; remove it before you type that: claude mcp remove --scope user opd"


def _must(run: Run, words: Sequence[str], wanted: dict[str, Any]) -> None:
    code, output = run(words)
    if code:
        told = clean_text(output.strip(), 300) or "it said nothing"
        raise ConfigError(
            f"`claude {' '.join(words[1:3])}` failed: {told}. You can type this instead:\n{_line(wanted)}"
        )


def _run(words: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stderr or done.stdout


def _command_words(entry: dict[str, Any]) -> list[str]:
    """The arguments of `claude` that add an entry for all projects of the user."""
    return ["mcp", "add-json", "--scope", "user", ENTRY_NAME, json.dumps(entry, ensure_ascii=False)]


def _line(entry: dict[str, Any]) -> str:
    """The command to type; values that a person added may be secret and are not shown."""
    shown = {name: value if name in OWN_KEYS else "..." for name, value in entry.items()}
    shown["env"] = {name: value if name == "OPD_HOME" else "..." for name, value in entry.get("env", {}).items()}
    return f"  {shlex.join(['claude', *_command_words(shown)])}"


def _instructions(host: Host, entry: dict[str, Any], environment: Mapping[str, str], platform: str) -> list[str]:
    """Where an entry belongs and what it is, to be done by hand."""
    snippet = _snippet({host.key: {ENTRY_NAME: entry}})
    if host.by_command:
        return [
            f"{host.title}, for all your projects:",
            _line(entry),
            "For one project, in the file .mcp.json of its folder:",
            snippet,
        ]
    place = str(config_path(host, environment, platform)) if platform in ("darwin", "linux") else "the host's settings"
    return [f"{host.title}, in {place}:", snippet, host.reload]


def _snippet(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _changes(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """What is new in the entry, one a line; only what this program sets, since other values may be secret."""
    before = old or {}
    pairs = {name: (before.get(name), new.get(name)) for name in ("type", "command", "args")}
    pairs["OPD_HOME"] = (entry_home(before), entry_home(new))
    return [
        f"  {name}: {_shown(now)}" + (f" (was {_shown(then)})" if then is not None else "")
        for name, (then, now) in pairs.items()
        if now != then
    ]


def _shown(value: Any) -> str:
    return clean_text(" ".join(map(str, value)) if isinstance(value, list) else str(value), 300)


def _advice(host: Host, entry: dict[str, Any]) -> list[str]:
    """Where the key of a paid teacher goes: never into a host's file, which other programs read and share."""
    place = Path(entry_home(entry) or default_home()) / ".env"
    if KEY_VARIABLE in entry["env"]:
        return [f"The entry holds {KEY_VARIABLE}, put there earlier. Better move it to {place} and take it out here."]
    return [f"Only a Claude teacher needs a key: the line {KEY_VARIABLE}=... in {place}, never in {host.title}'s file."]
