"""Which answers a report shows, and that their file is read with care."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opd_core.paths import HomePaths
from opd_core.state import jsonl
from opd_core.state.jsonl import JsonlFile
from tests.opd_core.control.report.pages import Page, written
from tests.opd_core.control.runs_seen import seen


def test_samples_without_a_comparison_are_those_before_and_after(home: HomePaths) -> None:
    records = [
        {"step": step, "prompt_id": f"p{number}", "prompt": f"prompt {number}", "completion": f"answer {step}.{number}"}
        for step in (0, 15, 30)
        for number in range(9)
    ]
    JsonlFile(home.rollouts("opd_1", "val")).append(records)
    html, _, _ = written(seen(best_step=30), home)
    text = Page(html).text
    assert "answer 0.0" in text and "answer 30.4" in text
    assert "answer 15.0" not in text and "answer 0.5" not in text
    assert "before training, step 0" in text and "best adapter, step 30" in text


def test_answers_are_read_from_a_regular_file_alone_and_no_line_is_read_without_an_end(
    home: HomePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        {"step": 0, "prompt_id": f"p{number}", "prompt": "x", "completion": f"answer {number}" + "z" * length}
        for number, length in enumerate((0, 5000, 0))
    ]
    path = home.rollouts("opd_1", "val")
    JsonlFile(path).append(records)
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    text = Page(written(seen(best_step=30), home)[0]).text
    assert "answer 0" in text and "answer 2" in text and "answer 1" not in text
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "answer 0" not in Page(written(seen(best_step=30), home)[0]).text
    path.unlink()
    os.mkfifo(path)
    assert "No held-out answers" in Page(written(seen(best_step=30), home)[0]).text
