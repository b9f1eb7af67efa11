"""The command line: help everywhere, one sentence and exit code 2 for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core import __version__
from server.cli import main

COMMANDS = (
    *("serve", "demo", "run", "status", "stop", "report", "doctor"),
    *("install", "ledger", "adjust", "set-month", "unfreeze", "import-gguf"),
)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "opd")
def test_help_is_everywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "-h"])
    assert ended.value.code == 0
    assert "usage: opd" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"opd {__version__}\n"


def test_an_unknown_command_is_refused_with_code_two() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["destil"])
    assert ended.value.code == 2


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize("options", [["--port", "9000"], ["--allow-remote"], ["--allow-host", "opd.example.org"]])
def test_options_of_the_http_door_are_refused_without_it(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "need --http" in refused(["serve", *options], capsys)


def test_status_without_a_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "home"))
    assert "no runs yet" in refused(["status"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_run_without_its_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.yaml cannot be read" in refused(["run", str(tmp_path / "none.yaml")], capsys)


def test_run_with_a_wrong_configuration_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "home"))
    file = tmp_path / "run.yaml"
    file.write_text("models: {base_model_path: none}\ndata: {prompts_path: /p.txt}\nlearning_rat: 1.0\n")
    assert "did you mean 'learning_rate'" in refused(["run", str(file)], capsys)
    assert list(tmp_path.iterdir()) == [file]


def test_an_import_of_a_missing_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["import-gguf", str(tmp_path / "none.gguf"), str(tmp_path / "out")], capsys)
    assert "none.gguf" in told
    assert list(tmp_path.iterdir()) == []
