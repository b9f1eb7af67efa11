"""The peak of a process is its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from opd_core import peak_memory
from opd_core.peak_memory import peak_rss_bytes

ASKED = "from opd_core.peak_memory import peak_rss_bytes; print(peak_rss_bytes())"
BIG = 200_000_000


def test_what_a_process_has_held_stays_in_its_peak() -> None:
    held = b"x" * BIG
    del held
    assert BIG < peak_rss_bytes() < 10**12


def test_the_parent_is_not_counted() -> None:
    held = b"x" * BIG
    answer = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(answer.stdout) < BIG <= len(held)


@pytest.mark.parametrize("text", [None, "Name:\tpython\nVmRSS:\t12 kB\n"])
def test_where_the_kernel_tells_no_peak_of_its_own_the_usual_one_is_taken(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "STATUS", tmp_path / "status")
    if text is not None:
        peak_memory.STATUS.write_text(text)
    assert 1_000_000 < peak_rss_bytes() < 10**12
