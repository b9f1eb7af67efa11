"""The real use cases behind the tools, on an empty home: clear refusals, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from opd_core.config import parse_config
from opd_core.errors import OPDError, RunNotFoundError, StateError
from opd_core.state.store import RunStore
from server.arguments import CompareArguments
from server.settings import read_settings
from server.use_cases import HomeUseCases

CONFIG = {"base_model_path": "tiny", "prompts_path": "/p.txt", "num_training_steps": 3}


def house(home: Path) -> HomeUseCases:
    return HomeUseCases(read_settings({"OPD_HOME": str(home)}))


def with_run(home: Path, run_id: str, **columns: Any) -> RunStore:
    """A home with one run whose end was recorded."""
    cases = house(home)
    cases.home.prepare()
    store = RunStore(cases.home.database)
    config = parse_config({**CONFIG, "run_id": run_id}).model_dump(mode="json")
    store.create(run_id, "distillation", config, total_steps=3)
    epoch = store.claim(run_id)
    store.finish(run_id, "completed", "finished", epoch=epoch, message="done", **columns)
    return store


def test_asking_about_runs_makes_no_home(tmp_path: Path) -> None:
    cases = house(tmp_path / "home")
    with pytest.raises(RunNotFoundError):
        cases.status(None)
    assert cases.list(None, None, 10, None) == ([], None)
    assert cases.list_models().adapters == ()
    assert list(tmp_path.iterdir()) == []


def test_a_refused_start_and_estimate_leave_nothing_behind(tmp_path: Path) -> None:
    cases = house(tmp_path / "home")
    for verb in (cases.start, cases.estimate):
        with pytest.raises(OPDError, match="base_model_path"):
            verb(parse_config(CONFIG))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_home_is_a_problem_of_the_setup(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    report = house(tmp_path / "locked" / "home").check_setup()
    assert not report.ready


def test_a_comparison_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="nothing to compare"):
        house(tmp_path / "home").start_comparison(CompareArguments.model_validate({}))


def test_two_candidates_of_one_name_are_refused(tmp_path: Path) -> None:
    with_run(tmp_path, "opd_1").close()
    arguments = {"run_id": "opd_1", "candidates": [{"name": "a"}, {"name": "a"}]}
    with pytest.raises(StateError, match="same name"):
        house(tmp_path).start_comparison(CompareArguments.model_validate(arguments))
