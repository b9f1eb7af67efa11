"""The example for Claude Desktop, against the code it starts."""

from __future__ import annotations

import json
from pathlib import Path

from server.cli import parser
from server.settings import KNOWN

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_starts_a_command_that_exists_with_settings_that_are_read() -> None:
    text = (ROOT / "claude_desktop_config.example.json").read_text(encoding="utf-8")
    (server,) = json.loads(text)["mcpServers"].values()
    assert Path(server["command"]).is_absolute() and Path(server["command"]).name == "opd"
    assert callable(parser().parse_args(server["args"]).command)
    assert set(server["env"]) <= {"OPD_HOME", *KNOWN, "ANTHROPIC_API_KEY"}
    assert Path(server["env"]["OPD_HOME"]).is_absolute()
