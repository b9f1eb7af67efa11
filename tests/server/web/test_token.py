"""The token of the HTTP door: made once, private, the same for servers that start together."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from opd_core.errors import HomeError
from opd_core.paths import HomePaths
from server.web.token import TOKEN_PATTERN, read_or_make_token, token_path

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_start_makes_a_private_token_and_later_ones_keep_it(home: HomePaths) -> None:
    token = read_or_make_token(home)
    path = token_path(home)
    assert TOKEN_PATTERN.fullmatch(token)
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_nlink == 1
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_or_make_token(home) == token
    assert [file.name for file in home.home.iterdir() if file.is_file()] == ["token"]


def test_two_homes_have_two_tokens(tmp_path: Path) -> None:
    tokens = {read_or_make_token(HomePaths(tmp_path / name)) for name in ("a", "b", "c")}
    assert len(tokens) == 3


def test_the_mode_does_not_depend_on_the_umask(home: HomePaths) -> None:
    before = os.umask(0)
    try:
        read_or_make_token(home)
    finally:
        os.umask(before)
    assert token_path(home).stat().st_mode & 0o777 == 0o600


def test_of_servers_that_start_together_all_use_one_token(home: HomePaths) -> None:
    together = Barrier(8)

    def start(_: int) -> str:
        together.wait()
        return read_or_make_token(home)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 1
    assert [file.name for file in home.home.iterdir() if file.is_file()] == ["token"]


def test_the_one_that_comes_second_between_look_and_link_takes_the_firsts(
    home: HomePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_or_make_token(home)
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    assert read_or_make_token(home) == first


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o601])
def test_a_token_that_others_may_read_is_refused_with_the_way_out(home: HomePaths, mode: int) -> None:
    token = read_or_make_token(home)
    token_path(home).chmod(mode)
    with pytest.raises(HomeError, match=f"mode {mode:04o}.*Remove it") as caught:
        read_or_make_token(home)
    assert token not in str(caught.value)
    token_path(home).unlink()
    assert read_or_make_token(home) != token


@pytest.mark.parametrize(
    "content", [b"", b"short", b"x" * 42, b"with a space" * 5, b"\xff" * 60, b"a" * 43 + b"\r\nb", b"x" * 129]
)
def test_a_file_without_a_token_is_refused(home: HomePaths, content: bytes) -> None:
    home.prepare()
    token_path(home).write_bytes(content)
    token_path(home).chmod(0o600)
    with pytest.raises(HomeError, match="holds no token"):
        read_or_make_token(home)


def test_a_link_a_folder_and_a_fifo_are_refused_without_waiting(home: HomePaths, tmp_path: Path) -> None:
    home.prepare()
    path, elsewhere = token_path(home), tmp_path / "elsewhere"
    elsewhere.write_text("t" * 43)
    elsewhere.chmod(0o600)
    path.symlink_to(elsewhere)
    with pytest.raises(HomeError, match="remove the file"):
        read_or_make_token(home)
    path.unlink()
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(HomeError, match="remove the file"):
        read_or_make_token(home)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(HomeError, match="not a file of your own"):
        read_or_make_token(home)
    path.unlink()
    path.mkdir()
    with pytest.raises(HomeError):
        read_or_make_token(home)


def test_a_home_that_cannot_be_made_is_an_error_of_the_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="OPD_HOME"):
        read_or_make_token(HomePaths(tmp_path / "file"))


def test_no_command_takes_the_token_as_an_argument_or_prints_it(home: HomePaths) -> None:
    token = read_or_make_token(home)
    shown = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", "--help"],
        env={"OPD_HOME": str(home.home), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "--token" not in shown and token not in shown
