"""What a comparison may be asked to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from opd_core.comparison import Candidate, ComparisonSpec, default_candidates
from opd_core.control.preflight.checking import check, check_comparison
from opd_core.errors import ConfigError, PathError
from tests.model_folders import World, make_adapter


def spec(*candidates: Candidate) -> ComparisonSpec:
    return ComparisonSpec(run_id="opd_1", candidates=candidates)


def test_spec_survives_the_trip_through_the_database() -> None:
    given = spec(Candidate(name="base"), Candidate(name="mine", adapter_path="/a"))
    assert ComparisonSpec(**given.model_dump(mode="json")) == given


def test_two_candidates_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="same name: x, x"):
        spec(Candidate(name="x"), Candidate(name="x", adapter_path="/a"))


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValidationError):
        spec()


def test_default_candidates_are_base_incoming_and_distilled(tmp_path: Path) -> None:
    config = World(tmp_path).config(student_adapter_path="/sft")
    assert [(one.name, one.adapter_path) for one in default_candidates(config, "/new")] == [
        ("base", None),
        ("incoming", "/sft"),
        ("distilled", "/new"),
    ]
    plain = World(tmp_path / "plain").config()
    assert [one.name for one in default_candidates(plain, None)] == ["base"]


def test_candidate_paths_are_checked_and_made_absolute(tmp_path: Path) -> None:
    world = World(tmp_path)
    config = check(world.config(), world.roots, world.settings).config
    adapter = make_adapter(world.home.checkpoints("opd_1"))
    link = world.home.home / "link"
    link.symlink_to(adapter)
    checked = check_comparison(
        spec(Candidate(name="mine", adapter_path=str(link))), config, world.roots, world.settings
    )
    assert checked.warnings == () and checked.spec.candidates[0].adapter_path == str(adapter.resolve())


def test_all_unusable_candidate_paths_are_named_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    config = check(world.config(), world.roots, world.settings).config
    outside = Candidate(name="far", adapter_path=str(tmp_path / "far"))
    with pytest.raises(PathError, match=r"'far'.*outside"):
        check_comparison(spec(outside), config, world.roots, world.settings)
    missing = Candidate(name="gone", adapter_path=str(world.home.home / "gone"))
    with pytest.raises(ConfigError, match=r"2 problems.*'far'.*'gone'"):
        check_comparison(spec(outside, missing), config, world.roots, world.settings)
