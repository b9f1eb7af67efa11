"""The example for Claude Desktop, against the code it starts."""

from __future__ import annotations

import json
from pathlib import Path

from server.cli import parser
from server.hosts.known import HOSTS, entry_in, new_entry
from server.settings import KNOWN

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_starts_a_command_that_exists_with_settings_that_are_read() -> None:
    text = (ROOT / "claude_desktop_config.example.json").read_text(encoding="utf-8")
    (server,) = json.loads(text)["mcpServers"].values()
    assert Path(server["command"]).is_absolute() and Path(server["command"]).name == "opd"
    assert callable(parser().parse_args(server["args"]).command)
    assert set(server["env"]) <= {"OPD_HOME", *KNOWN, "ANTHROPIC_API_KEY"}
    assert Path(server["env"]["OPD_HOME"]).is_absolute()


def test_the_example_has_the_form_that_install_writes() -> None:
    config = json.loads((ROOT / "claude_desktop_config.example.json").read_text(encoding="utf-8"))
    host = HOSTS["claude-desktop"]
    example = entry_in(host, config)
    assert example is not None and list(config) == [host.key]
    command = [example["command"], *example["args"]]
    assert new_entry(host, Path(example["env"]["OPD_HOME"]), command) == example
