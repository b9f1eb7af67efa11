"""Files that somebody else named: only plain ones are opened, and no link is followed on the way."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from opd_core.safe_open import UnsafeFileError, open_regular, read_regular


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "plain.txt"
    path.parent.mkdir()
    path.write_text("text")
    return path


def test_a_plain_file_is_opened_for_reading(plain: Path) -> None:
    with open_regular(plain, max_bytes=4, one_name=True) as file:
        assert file.read() == b"text"
        assert not file.writable() and not os.get_inheritable(file.fileno())


def test_the_open_file_is_read_whatever_the_path_becomes(plain: Path) -> None:
    with open_regular(plain) as file:
        plain.unlink()
        plain.symlink_to("/etc/passwd")
        assert file.read() == b"text"


def test_one_byte_more_than_the_cap_is_refused(plain: Path) -> None:
    with pytest.raises(UnsafeFileError, match="larger than 3 bytes"):
        open_regular(plain, max_bytes=3)
    with pytest.raises(UnsafeFileError, match="larger than 3 bytes"):
        read_regular(plain, 3)
    assert read_regular(plain, 4) == b"text"


def test_a_second_name_is_refused_only_where_one_is_asked_for(plain: Path) -> None:
    (plain.parent / "second.txt").hardlink_to(plain)
    with pytest.raises(UnsafeFileError, match="2 names"):
        open_regular(plain, one_name=True)
    open_regular(plain).close()


def test_a_link_in_any_part_of_the_path_is_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(plain)
    (tmp_path / "way").symlink_to(plain.parent)
    for path in (tmp_path / "link.txt", tmp_path / "way" / "plain.txt"):
        with pytest.raises(UnsafeFileError, match="symbolic link"):
            open_regular(path)
        assert read_regular(path, 100) == b"text", "a caller that checked the place may follow it"
    with pytest.raises(UnsafeFileError):
        open_regular(plain.parent / ".." / "folder" / "plain.txt")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, said in (
        (tmp_path, "folder"),
        (tmp_path / "fifo", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UnsafeFileError, match=said):
            open_regular(path)
        with pytest.raises(UnsafeFileError, match=said):
            read_regular(path, 10)


def test_a_file_that_grows_while_it_is_read_is_refused(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def before_it_grew(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        plain.write_text("text that is longer")
        return found

    monkeypatch.setattr(os, "fstat", before_it_grew)
    with pytest.raises(UnsafeFileError, match="larger than 4 bytes"):
        read_regular(plain, 4)


@pytest.mark.parametrize("name", ["missing.txt", "x" * 300, "x/" * 2500 + "y"])
def test_what_is_not_there_is_an_error_of_the_system(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:
        open_regular(tmp_path / name)
    assert caught.value.strerror
    with pytest.raises(OSError):
        read_regular(tmp_path / name, 10)


def test_a_path_no_system_call_takes_is_refused(tmp_path: Path) -> None:
    for read in (lambda path: open_regular(path), lambda path: read_regular(path, 10)):
        with pytest.raises(UnsafeFileError):
            read(tmp_path / "nul\0.txt")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError):
        read_regular(tmp_path / "a", 10)


def test_no_descriptor_is_left_open(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(plain)
    os.mkfifo(tmp_path / "fifo")
    folder = Path("/dev/fd")
    before = len(list(folder.iterdir()))
    for path in (tmp_path / "link.txt", tmp_path / "fifo", tmp_path / "missing" / "x", plain.parent, plain):
        with contextlib.suppress(OSError):
            open_regular(path).close()
    assert len(list(folder.iterdir())) == before
