"""Sessions: which runs belong together, and which adapter is the fine-tune they began with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from opd_core.control.sessions import chosen_settings, sessions_of
from opd_core.state.rows import RunRow
from tests.model_folders import World, make_adapter
from tests.server.records import make_row


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return World(tmp_path)


def run(number: int, session_id: str | None = "s", adapter: Path | None = None, **changes: Any) -> RunRow:
    config = {"base_model_path": "base", "student_adapter_path": None if adapter is None else str(adapter)}
    fields: dict[str, Any] = {"number": number, "run_id": f"opd_{number}", "session_id": session_id, "config": config}
    return make_row(**{**fields, **changes})


def test_runs_are_grouped_in_order_and_what_belongs_to_none_is_left_out(world: World) -> None:
    rows = [run(5, "b"), run(4, "a"), run(3, None), run(2, "b", kind="comparison"), run(1, "b")]
    found = sessions_of(rows, world.home, world.roots)
    assert [(session.session_id, [row.run_id for row in session.runs]) for session in found] == [
        ("b", ["opd_5", "opd_1"]),
        ("a", ["opd_4"]),
    ]
    assert [session.sft_run for session in found] == [None, None]


def test_the_fine_tune_is_the_adapter_the_first_run_began_with(world: World) -> None:
    first = make_adapter(world.home.home / "tunes/first", rank=8, model="base")
    later = make_adapter(world.home.home / "tunes/later")
    (session,) = sessions_of([run(2, adapter=later), run(1, adapter=first)], world.home, world.roots)
    assert session.sft_run is not None
    assert (session.sft_run.path, session.sft_run.rank, session.sft_run.loads) == (first, 8, True)


def test_an_adapter_that_a_distillation_made_is_no_fine_tune(world: World) -> None:
    tuned = make_adapter(world.home.home / "tunes/first")
    made = make_adapter(world.home.checkpoints("opd_1"))
    elsewhere = make_adapter(world.home.home / "elsewhere/opd_2")
    rows = [
        run(3, adapter=tuned),
        run(2, adapter=elsewhere, final_adapter_path=str(elsewhere)),
        run(1, adapter=made),
    ]
    (session,) = sessions_of(rows, world.home, world.roots)
    assert session.sft_run is not None and session.sft_run.path == tuned


def test_a_fine_tune_that_is_gone_or_out_of_reach_says_so(world: World, tmp_path: Path) -> None:
    gone = make_adapter(world.home.home / "tunes/first")
    shutil.rmtree(gone)
    outside = make_adapter(tmp_path / "outside")
    for adapter, told in ((gone, "does not exist"), (outside, "outside the folders")):
        (session,) = sessions_of([run(1, adapter=adapter)], world.home, world.roots)
        assert session.sft_run is not None and session.sft_run.path == adapter
        assert session.sft_run.loads is False and told in str(session.sft_run.problem)


def test_the_settings_shown_are_those_that_somebody_chose(world: World) -> None:
    config = world.config(run_id="opd_1", session_id="s", learning_rate=5e-4).model_dump(mode="json")
    shown = chosen_settings(run(1, config=config))
    assert shown["learning_rate"] == 5e-4 and shown["base_model_path"] == "base"
    assert not {"run_id", "session_id", "seed", "teacher_examples", "lora_keys"} & set(shown)
