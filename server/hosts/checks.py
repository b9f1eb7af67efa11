"""What `opd doctor` finds in the hosts' files, in the token's file and on the HTTP port; nothing is written."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.errors import ConfigError, HomeError
from opd_core.paths import HomePaths
from opd_core.settings import KEY_VARIABLE
from opd_core.types import clean_text
from server.hosts.files import read_host_file
from server.hosts.known import ENTRY_NAME, HOSTS, Host, config_path, entry_home, entry_in
from server.web.token import read_or_make_token, token_path

HTTP_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """One sentence; one that is not fine says what to do."""

    text: str
    is_fine: bool = True


@dataclass(frozen=True)
class Launch:
    """How a host starts the server; `who` names it in a sentence."""

    who: str
    command: str
    arguments: tuple[str, ...]
    environment: dict[str, str]


def host_findings(home: HomePaths, environment: Mapping[str, str], platform: str) -> tuple[list[Finding], list[Launch]]:
    """What each host's file says of this server, and the launches to try (the same one is tried once)."""
    findings: list[Finding] = []
    launches: dict[tuple[object, ...], Launch] = {}
    for host in HOSTS.values():
        try:
            path = config_path(host, environment, platform)
            if not path.exists():
                continue
            entry = entry_in(host, read_host_file(path).config)
        except (ConfigError, OSError) as error:
            findings.append(Finding(f"{host.title}: {error}", is_fine=False))
            continue
        if entry is None:
            findings.append(Finding(f"{host.title} does not know the server; `opd install {host.name}` enters it."))
            continue
        problem, launch = _entry(host, path, entry)
        if launch is None:
            findings.append(Finding(problem, is_fine=problem.endswith("not tried here.")))
            continue
        launches.setdefault((launch.command, launch.arguments, *sorted(launch.environment.items())), launch)
        findings.append(_home_finding(host, entry, home))
        if KEY_VARIABLE in launch.environment:
            place = Path(entry_home(entry) or home.home) / ".env"
            findings.append(
                Finding(f"{path} holds {KEY_VARIABLE}, which other programs may read; move it to {place}.", False)
            )
    return findings, list(launches.values())


def _entry(host: Host, path: Path, entry: dict[str, Any]) -> tuple[str, Launch | None]:
    """An entry as a launch, or the sentence that says why it is none."""
    mend = f"`opd install {host.name}` mends it"
    command, arguments, variables = entry.get("command"), entry.get("args", []), entry.get("env", {})
    if command is None and "url" in entry:
        return f"{host.title} reaches the server at {clean_text(str(entry['url']), 200)}; that is not tried here.", None
    if (
        not isinstance(command, str)
        or not isinstance(arguments, list)
        or not isinstance(variables, dict)
        or not all(isinstance(word, str) and "\0" not in word for word in (command, *arguments, *variables.values()))
    ):
        return f"{host.title}: the entry {ENTRY_NAME!r} in {path} starts nothing; {mend}.", None
    shown = clean_text(command, 300)
    if not command.startswith("/"):
        return f"{host.title} starts {shown!r}, which it may not find without an absolute path; {mend}.", None
    if not os.access(command, os.X_OK) or not Path(command).is_file():
        return f"{host.title} starts {shown}, which does not exist or cannot be run; {mend}.", None
    return "", Launch(host.title, command, tuple(arguments), dict(variables))


def _home_finding(host: Host, entry: dict[str, Any], home: HomePaths) -> Finding:
    used = entry_home(entry)
    if used is None:
        return Finding(
            f"{host.title} is told no OPD_HOME: its runs lie in ~/OnPolicyDistill. `opd install {host.name}` sets it."
        )
    if not used.startswith("/"):
        return Finding(
            f"{host.title} uses OPD_HOME {clean_text(used, 300)!r}, which is not an absolute path; "
            f"`opd install {host.name} --home DIR` sets one.",
            is_fine=False,
        )
    if Path(used) != home.home:
        return Finding(
            f"{host.title} uses OPD_HOME {clean_text(used, 300)}, this terminal {home.home}: neither sees the other's "
            f"runs. If that is not meant, `opd install {host.name} --home {home.home}` makes them one."
        )
    return Finding(f"{host.title} starts this server with OPD_HOME {home.home}")


def token_finding(home: HomePaths) -> Finding:
    """Whether the token of the HTTP door can be used; none is made here."""
    path = token_path(home)
    if not os.path.lexists(path):
        return Finding("there is no token for HTTP yet; the first `opd serve --http` makes one")
    try:
        read_or_make_token(home)
    except HomeError as error:
        return Finding(str(error), is_fine=False)
    return Finding(f"the token for HTTP lies in {path}, readable by you alone")


def http_finding(port: int) -> Finding:
    """Whether a server answers over HTTP on this machine. The token is not sent: who listens there is not known."""
    where = f"127.0.0.1, port {port}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", "/health")
        reply = connection.getresponse()
        answered = reply.read(1000)
    except ConnectionRefusedError:
        return Finding(f"no server over HTTP on {where}; `opd serve --http` starts one when it is wanted")
    except (OSError, http.client.HTTPException) as error:
        return Finding(
            f"what listens on {where} does not answer ({clean_text(str(error), 100)}). Stop it, or serve on another "
            "port: opd serve --http --port PORT",
            is_fine=False,
        )
    finally:
        connection.close()
    if reply.status == 200 and _is_ours(answered):
        return Finding(f"a server answers over HTTP on {where}")
    return Finding(
        f"another program listens on {where}. Serve on another port: opd serve --http --port PORT", is_fine=False
    )


def _is_ours(body: bytes) -> bool:
    try:
        return bool(json.loads(body) == {"status": "ok"})
    except ValueError:
        return False
