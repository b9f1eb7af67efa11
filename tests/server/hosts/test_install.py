"""`opd install`: the right file and entry for each host, and nothing of anybody else's lost, whatever stands there."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from opd_core.errors import ConfigError
from server.cli import main, parser
from server.hosts import known as hosts
from server.hosts.install import install
from server.hosts.known import HOSTS, config_path

FILES = {
    ("claude-desktop", "darwin"): "Library/Application Support/Claude/claude_desktop_config.json",
    ("claude-desktop", "linux"): ".config/Claude/claude_desktop_config.json",
    ("cursor", "darwin"): ".cursor/mcp.json",
    ("cursor", "linux"): ".cursor/mcp.json",
    ("vscode", "darwin"): "Library/Application Support/Code/User/mcp.json",
    ("vscode", "linux"): ".config/Code/User/mcp.json",
}
OTHER = {"command": "/bin/other", "args": ["-x"], "env": {"TOKEN": "hunter2"}, "odd": [1, 2.5, None]}


class Installer:
    """One user's home; `told` are the lines of the last call."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "Müller Süd"
        self.home.mkdir()
        self.environment = {"HOME": str(self.home), "PATH": "/nowhere"}
        self.told = ""

    def __call__(self, host: str, home: Path | None = None, platform: str = "linux", **options: Any) -> str:
        self.told = "\n".join(install(host, home, environment=self.environment, platform=platform, **options))
        return self.told

    def write(self, file: str, content: str) -> Path:
        path = self.home / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OPD_HOME", raising=False)
    return Installer(tmp_path)


@pytest.mark.parametrize(("host", "platform"), list(FILES))
def test_each_host_is_told_absolute_paths_in_its_own_file_and_form(
    user: Installer, host: str, platform: str, tmp_path: Path
) -> None:
    user(host, tmp_path / "runs", platform)
    path = user.home / FILES[host, platform]
    config = json.loads(path.read_text(encoding="utf-8"))
    assert list(config) == [{"vscode": "servers"}.get(host, "mcpServers")]
    (entry,) = next(iter(config.values())).values()
    assert Path(entry["command"]).is_absolute() and os.access(entry["command"], os.X_OK)
    assert entry["env"] == {"OPD_HOME": str(tmp_path / "runs")}
    assert entry.get("type") == (None if host == "claude-desktop" else "stdio")
    if Path(entry["command"]).name == "opd":
        assert callable(parser().parse_args(entry["args"]).command)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "added" in user.told and str(path) in user.told and "installed?" in user.told


def test_without_the_command_beside_python_the_module_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/none/python")
    assert hosts.server_command() == ["/usr/bin/none/python", "-P", "-m", "server.cli", "serve"]


def test_what_others_wrote_stays_in_its_order_and_the_old_file_is_kept(user: Installer) -> None:
    before = {"theme": "dark", "mcpServers": {"other": OTHER}, "zoom": 1.25, "ü": "\U0001f600"}
    path = user.write(FILES["claude-desktop", "linux"], json.dumps(before, indent=4))
    user("claude-desktop")
    text = path.read_text(encoding="utf-8")
    after = json.loads(text)
    assert list(after) == list(before) and list(after["mcpServers"]) == ["other", "opd"]
    del after["mcpServers"]["opd"]
    assert after == before
    assert '\n    "theme"' in text, "the indentation is the file's own"
    (backup,) = path.parent.glob("*.opd-backup*")
    assert json.loads(backup.read_text(encoding="utf-8")) == before
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert "Kept as they were: other" in user.told and str(backup) in user.told and "hunter2" not in user.told


def test_a_second_install_changes_nothing_and_another_home_only_the_home(user: Installer, tmp_path: Path) -> None:
    user("cursor", tmp_path / "one")
    path = user.home / ".cursor/mcp.json"
    first = path.read_bytes()
    assert "nothing was changed" in user("cursor", tmp_path / "one")
    assert path.read_bytes() == first and list(path.parent.iterdir()) == [path]
    assert "nothing was changed" in user("cursor"), "without --home the entry's own stays"
    told = user("cursor", tmp_path / "two")
    assert f"OPD_HOME: {tmp_path / 'two'} (was {tmp_path / 'one'})" in told and "command:" not in told
    assert len(list(path.parent.iterdir())) == 2
    user("cursor", tmp_path / "three")
    assert len(list(path.parent.iterdir())) == 3, "every old file is kept"


def test_what_a_person_added_to_our_entry_stays(user: Installer) -> None:
    entry = {"command": "/old/opd", "args": [], "env": {"OPD_ROOTS": "/models"}, "disabled": False}
    path = user.write(".cursor/mcp.json", json.dumps({"mcpServers": {"opd": entry}}))
    told = user("cursor")
    after = json.loads(path.read_text(encoding="utf-8"))["mcpServers"]["opd"]
    assert after["env"]["OPD_ROOTS"] == "/models" and after["disabled"] is False
    assert "changed" in told and "(was /old/opd)" in told


def test_an_entry_for_a_server_over_http_is_replaced_whole(user: Installer) -> None:
    entry = {"url": "http://127.0.0.1:8765/mcp", "headers": {"Authorization": "Bearer secret"}}
    path = user.write(".cursor/mcp.json", json.dumps({"mcpServers": {"opd": entry}}))
    assert "secret" not in user("cursor")
    assert set(json.loads(path.read_text(encoding="utf-8"))["mcpServers"]["opd"]) == {"type", "command", "args", "env"}


@pytest.mark.parametrize(
    "content",
    [
        '{\n  // my servers\n  "servers": {}\n}',
        '{"servers": {},}',
        '{"servers": {"a": {}, "a": {}}}',
        '{"servers": {}',
        '{"zoom": NaN}',
        '{"zoom": 1e999}',
        "[]",
        "null",
        "[" * 100_000,
    ],
    ids=["comment", "trailing comma", "name twice", "cut short", "NaN", "infinite", "list", "null", "deep"],
)
def test_a_file_that_would_lose_something_is_left_and_the_person_told_what_to_paste(
    user: Installer, content: str
) -> None:
    path = user.write(FILES["vscode", "linux"], content)
    with pytest.raises(ConfigError, match="left as it is") as refused:
        user("vscode")
    assert str(path) in str(refused.value) and '"command"' in str(refused.value) and "'servers'" in str(refused.value)
    assert path.read_text(encoding="utf-8") == content and list(path.parent.iterdir()) == [path]


def test_a_file_that_is_not_utf8_or_whose_servers_are_no_object_is_left(user: Installer) -> None:
    path = user.write(".cursor/mcp.json", '{"mcpServers": []}')
    with pytest.raises(ConfigError, match="not an object"):
        user("cursor")
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="left as it is"):
        user("cursor")
    assert path.read_bytes() == b'{"a": "\xff"}'


def test_an_empty_file_and_one_with_a_byte_order_mark_are_written(user: Installer) -> None:
    path = user.write(".cursor/mcp.json", " \n")
    user("cursor")
    assert "opd" in json.loads(path.read_text(encoding="utf-8"))["mcpServers"]
    path.write_text('\ufeff{"a": "\\ud83d"}', encoding="utf-8")
    user("cursor")
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == "\ud83d"


def test_a_link_to_the_file_stays_a_link(user: Installer) -> None:
    target = user.write("dotfiles/mcp.json", "{}")
    link = user.home / ".cursor/mcp.json"
    link.parent.mkdir()
    link.symlink_to(target)
    user("cursor")
    assert link.is_symlink() and "opd" in json.loads(target.read_text(encoding="utf-8"))["mcpServers"]


def test_something_that_is_no_file_is_refused_and_not_opened(user: Installer) -> None:
    (user.home / ".cursor").mkdir()
    os.mkfifo(user.home / ".cursor/mcp.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        user("cursor")


def test_a_file_that_changes_meanwhile_is_not_overwritten(user: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.hosts import files as host_files

    path = user.write(".cursor/mcp.json", "{}")
    keep = host_files._keep

    def keep_and_be_overtaken(path: Path, content: bytes) -> Path:
        backup = keep(path, content)
        path.write_text('{"a": 1}', encoding="utf-8")
        return backup

    monkeypatch.setattr(host_files, "_keep", keep_and_be_overtaken)
    with pytest.raises(ConfigError, match="changed by another program"):
        user("cursor")
    assert path.read_text(encoding="utf-8") == '{"a": 1}'


@pytest.mark.parametrize("host", list(HOSTS))
def test_print_shows_path_and_entry_and_writes_nothing(user: Installer, host: str, tmp_path: Path) -> None:
    for platform in ("darwin", "linux", "win32"):
        told = user(host, tmp_path / "runs", platform, print_only=True)
        snippet = json.loads(told[told.index("\n{") + 1 : told.rindex("\n}") + 2])
        ((name, entry),) = next(iter(snippet.values())).items()
        assert name == "opd" and entry["env"] == {"OPD_HOME": str(tmp_path / "runs")}
        if (host, platform) in FILES:
            assert str(user.home / FILES[host, platform]) in told
    assert list(user.home.iterdir()) == []


@pytest.mark.parametrize("host", list(HOSTS))
def test_the_key_is_never_written_and_its_place_is_told(
    user: Installer, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    user.environment["ANTHROPIC_API_KEY"] = "sk-secret"
    ran: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> tuple[int, str]:
        ran.append(words)
        return 0, ""

    told = user(host, tmp_path / "runs", run=run)
    written = [path.read_text(encoding="utf-8") for path in user.home.rglob("*") if path.is_file()]
    assert "sk-secret" not in f"{told}{written}{ran}"
    if host != "claude-code":
        assert str(tmp_path / "runs/.env") in told and "ANTHROPIC_API_KEY" in told


def test_a_key_in_an_earlier_entry_is_kept_and_complained_about(user: Installer) -> None:
    entry = {"command": "/old/opd", "env": {"ANTHROPIC_API_KEY": "sk-secret"}}
    path = user.write(".cursor/mcp.json", json.dumps({"mcpServers": {"opd": entry}}))
    told = user("cursor")
    assert "sk-secret" in path.read_text(encoding="utf-8")
    assert "Better move it" in told and "sk-secret" not in told


def test_an_unknown_platform_is_said_to_be_unsupported(user: Installer) -> None:
    with pytest.raises(ConfigError, match="win32 is not supported yet"):
        user("cursor", platform="win32")


def test_the_environment_moves_the_settings_folder(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "/xdg", "CLAUDE_CONFIG_DIR": "/cc"}
    assert config_path(HOSTS["vscode"], environment, "linux") == Path("/xdg/Code/User/mcp.json")
    assert config_path(HOSTS["claude-code"], environment, "linux") == Path("/cc/.claude.json")
    assert config_path(HOSTS["cursor"], environment, "darwin") == tmp_path / ".cursor/mcp.json"


@pytest.fixture
def claude(user: Installer, tmp_path: Path) -> list[Sequence[str]]:
    """A `claude` on the PATH; what it was asked to do."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/claude").write_text("")
    (tmp_path / "bin/claude").chmod(0o700)
    user.environment["PATH"] = str(tmp_path / "bin")
    return []


def test_claude_code_is_told_by_its_own_command_and_only_when_it_differs(
    user: Installer, claude: list[Sequence[str]], tmp_path: Path
) -> None:
    def run(words: Sequence[str]) -> tuple[int, str]:
        claude.append(words)
        return 0, ""

    told = user("claude-code", tmp_path / "runs", run=run)
    (words,) = claude
    assert list(words[1:6]) == ["mcp", "add-json", "--scope", "user", "opd"] and "added" in told
    entry = json.loads(words[6])
    assert entry["type"] == "stdio" and entry["env"] == {"OPD_HOME": str(tmp_path / "runs")}
    assert list(user.home.iterdir()) == [], "its file is its own to write"
    user.write(".claude.json", json.dumps({"mcpServers": {"opd": entry}, "projects": {}}))
    assert "nothing was changed" in user("claude-code", tmp_path / "runs", run=run) and len(claude) == 1
    user("claude-code", tmp_path / "other", run=run)
    assert [words[2] for words in claude[1:]] == ["remove", "add-json"]


def test_without_the_claude_command_the_command_line_is_shown(user: Installer, tmp_path: Path) -> None:
    told = user("claude-code", tmp_path / "runs")
    assert "not found" in told and "claude mcp add-json --scope user opd" in told
    assert list(user.home.iterdir()) == []


def test_a_failing_claude_command_is_told_with_the_line_to_type_and_no_secret(
    user: Installer, claude: list[Sequence[str]]
) -> None:
    entry = {"type": "stdio", "command": "/old/opd", "args": [], "env": {}}
    user.write(".claude.json", json.dumps({"mcpServers": {"opd": entry}}))
    with pytest.raises(ConfigError, match="no such scope") as refused:
        user("claude-code", run=lambda words: (1, "no such scope\x1b[31m"))
    assert "\x1b" not in str(refused.value) and "claude mcp add-json" in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ({"command": "/old/opd", "args": [], "env": {"OTHER": "hunter2", "OPD_HOME": "/h"}}, "(OTHER)"),
        ({"command": "/old/opd", "env": {}, "auth": "hunter2"}, "(auth)"),
        ({"type": "http", "url": "http://h/hunter2", "headers": {"Authorization": "hunter2"}}, "(url, headers)"),
        ({"command": "/old/opd", "env": "hunter2"}, "(env)"),
    ],
)
def test_an_entry_of_claude_code_with_values_of_others_is_left_and_the_person_told(
    user: Installer, claude: list[Sequence[str]], entry: dict[str, Any], names: str
) -> None:
    def run(words: Sequence[str]) -> tuple[int, str]:
        claude.append(words)
        return 0, ""

    path = user.write(".claude.json", json.dumps({"mcpServers": {"opd": entry}}))
    before = path.read_bytes()
    told = user("claude-code", run=run)
    assert claude == [] and path.read_bytes() == before
    assert names in told and "nothing was changed" in told and "hunter2" not in told
    assert "claude mcp remove --scope user opd" in told and "claude mcp add-json --scope user opd" in told


@pytest.mark.parametrize("works_again", [True, False])
def test_an_entry_of_claude_code_that_could_not_be_replaced_is_put_back(
    user: Installer, claude: list[Sequence[str]], works_again: bool
) -> None:
    entry = {"type": "stdio", "command": "/old/opd", "args": ["serve"]}

    def run(words: Sequence[str]) -> tuple[int, str]:
        claude.append(words)
        is_old = json.loads(words[-1]) == entry if words[2] == "add-json" else None
        return (0 if is_old is None or (is_old and works_again) else 1), "it broke"

    user.write(".claude.json", json.dumps({"mcpServers": {"opd": entry}}))
    with pytest.raises(ConfigError, match="it broke") as refused:
        user("claude-code", run=run)
    assert [words[2] for words in claude] == ["remove", "add-json", "add-json"]
    assert json.loads(claude[-1][-1]) == entry
    assert ("is back as it was" in str(refused.value)) is works_again
    assert ("is gone" in str(refused.value) and "/old/opd" in str(refused.value)) is not works_again


def test_the_command_line_installs_and_refuses_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "from the environment"))
    assert main(["install", "cursor"]) == 0
    assert str(tmp_path / "from the environment") in (tmp_path / ".cursor/mcp.json").read_text(encoding="utf-8")
    capsys.readouterr()
    (tmp_path / ".cursor/mcp.json").write_text("// no")
    assert main(["install", "cursor"]) == 2
    assert "not plain JSON" in capsys.readouterr().err
    assert main(["install", "cursor", "--print", "--home", str(tmp_path / "x")]) == 0
    assert str(tmp_path / "x") in capsys.readouterr().out
