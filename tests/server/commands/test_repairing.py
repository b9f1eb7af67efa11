from __future__ import annotations

import pytest

from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from server import cli
from server.commands.repairing import look_after_home


def leave_a_torn_line(home: HomePaths) -> None:
    home.prepare()
    RunStore(home.database).create("run", "comparison", {})
    home.metrics("run", "train").parent.mkdir()
    home.metrics("run", "train").write_text('{"step": 1}\n{"st')


def test_without_repair_the_home_is_only_looked_at(home: HomePaths, capsys: pytest.CaptureFixture[str]) -> None:
    leave_a_torn_line(home)
    assert look_after_home(repair=False) == 1
    told = capsys.readouterr().out
    assert "run_train.jsonl ends in the middle of a line. To do: " in told and "opd doctor --repair" in told
    assert home.metrics("run", "train").read_text().endswith('{"st')


def test_repair_says_what_it_did_and_the_next_look_finds_nothing(
    home: HomePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_a_torn_line(home)
    assert look_after_home(repair=True) == 0
    assert "Mended:" in capsys.readouterr().out
    assert look_after_home(repair=False) == 0
    assert "nothing is left behind" in capsys.readouterr().out


def test_what_needs_a_person_is_told_after_the_mending_and_in_the_exit_code(
    home: HomePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_a_torn_line(home)
    home.checkpoints("lost").mkdir(parents=True)
    assert look_after_home(repair=True) == 1
    mended, _, left = capsys.readouterr().out.partition("Not mended:")
    assert "run_train.jsonl" in mended and "lost" not in mended
    assert "by hand" in left and "run_train.jsonl" not in left


def test_a_home_that_does_not_exist_is_not_made(home: HomePaths) -> None:
    assert look_after_home(repair=True) == 0 and not home.home.exists()


@pytest.mark.parametrize(("arguments", "repairs"), [(["doctor"], False), (["doctor", "--repair"], True)])
def test_the_command_hands_on_whether_to_repair(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], repairs: bool
) -> None:
    asked: list[bool] = []

    def look_after(repair: bool) -> int:
        asked.append(repair)
        return 1

    monkeypatch.setattr("server.commands.doctor.examine", lambda port: 0)
    monkeypatch.setattr("server.commands.repairing.look_after_home", look_after)
    assert cli.main(arguments) == 1 and asked == [repairs]
