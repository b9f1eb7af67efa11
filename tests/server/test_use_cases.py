"""The real use cases behind the tools, on an empty home: clear refusals, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from opd_core.config import parse_config
from opd_core.errors import OPDError, RunNotFoundError, StateError
from opd_core.paths import HomePaths
from opd_core.state.store import RunStore
from server.arguments.jobs import CompareArguments
from server.home_use_cases import HomeUseCases
from server.settings import read_settings
from tests.model_folders import make_adapter
from tests.server.records import make_row

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


@pytest.mark.parametrize("is_local", [True, False])
def test_the_users_own_home_may_be_read_by_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user" / "model").mkdir(parents=True)
    model = str(tmp_path / "user" / "model")
    config = parse_config({**CONFIG, "base_model_path": model})
    settings = read_settings({"OPD_HOME": str(tmp_path / "home")})
    with pytest.raises(OPDError) as refused:
        HomeUseCases(settings, is_local=is_local).start(config)
    assert (f"{model!r} lies outside the folders" in str(refused.value)) is not is_local


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


def test_adapters_below_opd_roots_are_listed_and_a_session_finds_its_fine_tune(
    home: HomePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    tuned = make_adapter(tmp_path / "tunes" / "mine", rank=8)
    cases = HomeUseCases(read_settings({"OPD_HOME": str(home.home), "OPD_ROOTS": str(tmp_path / "tunes")}))
    assert [adapter.path for adapter in cases.list_models().adapters] == [tuned]
    row = make_row(session_id="s", config={"student_adapter_path": str(tuned)})
    (session,) = cases.sessions([row])
    assert session.sft_run is not None and (session.sft_run.path, session.sft_run.rank) == (tuned, 8)
