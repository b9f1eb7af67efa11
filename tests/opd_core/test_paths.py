"""OPD_HOME: where things lie, private to the user, replaced whole."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from opd_core.errors import ConfigError, HomeError
from opd_core.paths import HomePaths, check_run_id, default_home, new_run_id, write_json, write_whole
from opd_core.types import clean_text


def test_the_home_comes_from_the_environment_and_never_from_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPD_HOME", str(tmp_path / "here"))
    assert default_home() == tmp_path / "here"
    monkeypatch.delenv("OPD_HOME")
    monkeypatch.chdir(tmp_path)
    assert default_home() == Path.home() / "OnPolicyDistill"


def test_prepared_folders_are_private(tmp_path: Path) -> None:
    home = HomePaths(tmp_path / "home")
    home.prepare()
    home.prepare()  # a second time changes nothing
    assert home.locks.stat().st_mode & 0o777 == 0o700
    assert home.home.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match=r"set OPD_HOME"):
        HomePaths(tmp_path / "file" / "home").prepare()


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "-x", "a" * 65, "a\x00", "ü"])
def test_names_that_could_leave_the_home_are_refused(run_id: str) -> None:
    with pytest.raises(ConfigError, match="run_id"):
        check_run_id(run_id)


def test_run_ids_carry_the_utc_time_and_a_suffix_when_taken() -> None:
    moment = datetime(2026, 11, 23, 12, 34, 56, tzinfo=UTC)
    assert new_run_id(now=moment) == "opd_20261123_123456"
    again = new_run_id(now=moment, taken=True)
    assert again.startswith("opd_20261123_123456_") and check_run_id(again) == again


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_whole(file, "first")
    write_whole(file, "second")
    assert file.read_text() == "second"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["file.txt"]


def test_a_failed_replacement_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.txt"
    write_whole(file, "first")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "second")
    assert file.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_json_files_refuse_numbers_json_has_not(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1.5, "é": None})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": 1.5, "é": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本\n\tok", "plain é 日本\n\tok"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb\u200bc", "a\\u202eb\\u200bc"),
        ("\r\n", "\\r\n"),
        ("x" * 12, "xxxxxxxxxx… [2 more characters]"),
    ],
)
def test_text_from_outside_is_escaped_and_capped(text: str, shown: str) -> None:
    assert clean_text(text, 10 if text.startswith("xxx") else 500) == shown


def test_rollouts_lie_in_the_home_or_where_the_configuration_says(tmp_path: Path) -> None:
    home = HomePaths(tmp_path)
    config = {"rollout_output_dir": "/train", "val_rollout_dir": "/val"}
    assert home.rollouts("a", "train", config) == Path("/train/a_rollouts.jsonl")
    assert home.rollouts("a", "val", config) == Path("/val/a_val_rollouts.jsonl")
    for nothing in (None, {}, dict.fromkeys(config)):
        assert home.rollouts("a", "train", nothing) == tmp_path / "rollouts" / "train" / "a_rollouts.jsonl"
        assert home.rollouts("a", "val", nothing) == tmp_path / "rollouts" / "val" / "a_val_rollouts.jsonl"
