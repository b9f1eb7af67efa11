"""The set-up report: what is there, what is in the way, and the remedy for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from opd_core.blas import BlasReport
from opd_core.control import setup_check
from opd_core.control.machine import Memory
from opd_core.control.setup_check import SetupReport, check_setup
from opd_core.paths import HomePaths
from opd_core.settings import Settings
from opd_core.state.store import RunStore
from tests.model_folders import World

FAST = BlasReport("system", "libopenblas.so.0", "cpu", 200.0, "OpenBLAS of the system")
SLOW = BlasReport("reference", None, "cpu", 4.8, "no libopenblas.so.0 on the system")
BROKEN = BlasReport("reference", None, None, None, "the measuring process ended with status 1")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(setup_check, "guess_device", lambda: "cpu")
    monkeypatch.setattr(setup_check, "read_memory", lambda: Memory(16 * 10**9, 8 * 10**9))
    monkeypatch.setattr(setup_check, "free_disk_bytes", lambda folder: 10**11)
    return World(tmp_path)


def found(world: World, blas: BlasReport = FAST, refresh: bool = False) -> SetupReport:
    return check_setup(Settings(world.home), roots=world.roots, refresh=refresh, measure=lambda: blas)


def counting(report: BlasReport) -> tuple[list[int], Callable[[], BlasReport]]:
    calls: list[int] = []

    def measure() -> BlasReport:
        calls.append(1)
        return report

    return calls, measure


def test_good_machine_has_no_problems_and_plain_facts(world: World) -> None:
    report = found(world)
    assert report.problems == () and report.ready
    assert report.facts["models"] == ["base"] and report.facts["memory_free_gb"] == 8.0
    assert report.versions["mlx"] and report.active_run is None
    json.dumps(report.facts, allow_nan=False)


def test_reference_blas_is_a_problem_with_its_rate_and_the_fast_ones_name(world: World) -> None:
    report = found(world, SLOW)
    (problem,) = report.problems
    assert "4.8 GFLOP/s" in problem.what and "libopenblas0-pthread" in problem.fix
    assert report.ready, "slow is not a reason to refuse"


def test_mlx_that_does_not_run_blocks(world: World) -> None:
    report = found(world, BROKEN)
    assert not report.ready and "status 1" in report.problems[0].what


def test_blas_is_measured_once_for_the_same_versions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, measure = counting(FAST)
    for _ in range(2):
        assert check_setup(Settings(world.home), roots=world.roots, measure=measure).blas == FAST
    assert len(calls) == 1
    check_setup(Settings(world.home), roots=world.roots, measure=measure, refresh=True)
    assert len(calls) == 2
    monkeypatch.setattr(setup_check, "package_version", lambda name: "9.9")
    check_setup(Settings(world.home), roots=world.roots, measure=measure)
    assert len(calls) == 3


def test_failed_measurement_is_not_remembered(world: World) -> None:
    found(world, BROKEN)
    assert found(world, FAST).blas == FAST


def test_unusable_home_is_reported_and_nothing_is_measured(world: World, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    calls, measure = counting(FAST)
    report = check_setup(Settings(HomePaths(blocker / "home")), roots=world.roots, measure=measure)
    assert not report.ready and str(blocker) in report.problems[0].what and "OPD_HOME" in report.problems[0].fix
    assert calls == [] and blocker.read_text() == "x"


def test_damaged_database_is_reported_with_the_remedy(world: World) -> None:
    world.home.database.write_bytes(b"this is no database" * 100)
    report = found(world)
    assert not report.ready and "opd.db" in report.problems[0].fix


def test_active_run_is_named(world: World) -> None:
    store = RunStore(world.home.database)
    store.create("opd_1", "distillation", {})
    assert found(world).active_run == "opd_1"
    store.create("opd_2", "distillation", {})
    store.claim("opd_2")
    assert found(world).active_run == "opd_2", "the one at work comes before the one that waits"


def test_missing_package_blocks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_check, "package_version", lambda name: None if name == "mlx-lm" else "1.0")
    report = found(world)
    assert not report.ready and "mlx-lm" in report.problems[0].what


def test_scarce_memory_and_disk_and_no_model_each_have_a_fix(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_check, "read_memory", lambda: Memory(4 * 10**9, 10**9))
    monkeypatch.setattr(setup_check, "free_disk_bytes", lambda folder: 10**9)
    (world.base / "config.json").unlink()
    whats = [problem.what for problem in found(world).problems]
    assert len(whats) == 3
    for word, what in zip(("memory", "disk", "model"), whats, strict=True):
        assert word in what
