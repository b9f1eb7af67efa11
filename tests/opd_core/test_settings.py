"""Where settings come from, which one wins, and that wrong ones are told instead of crashing the start."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from opd_core.paths import HomePaths
from opd_core.settings import DEFAULT_BASE_URL, find_api_key, read_settings
from opd_core.teachers import transport


def problems_of(environment: dict[str, str]) -> str:
    return " ".join(f"{problem.what} {problem.fix}" for problem in read_settings(environment).problems)


def test_the_home_comes_from_the_environment_and_is_absolute(tmp_path: Path) -> None:
    assert read_settings({"OPD_HOME": str(tmp_path / "house")}).home.home == tmp_path / "house"


def test_reading_settings_makes_nothing(tmp_path: Path) -> None:
    read_settings({"OPD_HOME": str(tmp_path / "house")})
    assert list(tmp_path.iterdir()) == []


def test_the_environment_wins_over_dotenv_and_dotenv_over_toml(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('max_budget_usd = 3\nroots = ["/a", "/b"]\ncache_dir = "/toml"\n')
    (tmp_path / ".env").write_text('# mine\nexport OPD_MAX_BUDGET_USD="2.5"\nOPD_CACHE_DIR=/dotenv\n')
    settings = read_settings({"OPD_HOME": str(tmp_path), "OPD_CACHE_DIR": "/environment"})
    assert settings.problems == ()
    assert settings.max_budget_usd == 2.5
    assert settings.cache_dir == Path("/environment")
    assert settings.roots == (Path("/a"), Path("/b"))


def test_dotenv_does_not_change_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPD_CACHE_DIR=/dotenv\n")
    environment = {"OPD_HOME": str(tmp_path)}
    read_settings(environment)
    assert environment == {"OPD_HOME": str(tmp_path)}


@pytest.mark.parametrize("value", ["five", "-1", "nan", "inf", "$5"])
def test_a_budget_that_is_no_amount_allows_nothing_and_is_named(tmp_path: Path, value: str) -> None:
    settings = read_settings({"OPD_HOME": str(tmp_path), "OPD_MAX_BUDGET_USD": value})
    assert settings.max_budget_usd == 0.0
    assert value in settings.problems[0].what


def test_unknown_names_are_told_with_the_near_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPD_MAX_BUDGET=5\nnonsense\n")
    (tmp_path / "settings.toml").write_text("rots = []\n")
    told = problems_of({"OPD_HOME": str(tmp_path), "OPD_ROOT": "/x", "PATH": "/bin"})
    assert "OPD_MAX_BUDGET in" in told and "Did you mean OPD_MAX_BUDGET_USD?" in told
    assert "Line 2 of" in told
    assert "rots in" in told and "Did you mean roots?" in told
    assert "OPD_ROOT is not a setting" in told and "Did you mean OPD_ROOTS?" in told
    assert "PATH is not" not in told


def test_the_settings_of_paid_teachers_come_from_the_same_places(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        'teacher_base_url = "https://other.example"\nprices_confirmed_on = 2026-11-23\nmonthly_budget_usd = 20\n'
    )
    (tmp_path / ".env").write_text("OPD_DEFAULT_TEACHER=claude-haiku-5-5\nOPD_RATE_LIMIT_TPM=50000\n")
    settings = read_settings({"OPD_HOME": str(tmp_path)})
    assert settings.problems == ()
    assert (settings.default_teacher, settings.rate_limit_tpm) == ("claude-haiku-5-5", 50_000)
    assert (settings.teacher_base_url, settings.prices_confirmed_on) == ("https://other.example", date(2026, 11, 23))
    assert settings.monthly_budget_usd == 20.0


def test_the_months_limit_is_that_of_one_run_unless_set(tmp_path: Path) -> None:
    environment = {"OPD_HOME": str(tmp_path), "OPD_MAX_BUDGET_USD": "7"}
    assert read_settings(environment).monthly_budget_usd == 7.0
    assert read_settings({**environment, "OPD_MONTHLY_BUDGET_USD": "x"}).monthly_budget_usd == 0.0


def test_only_the_homes_file_moves_the_teachers_address(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("teacher_base_url=http://evil.example\nANTHROPIC_BASE_URL=http://evil.example\n")
    environment = {"OPD_HOME": str(tmp_path), "teacher_base_url": "http://evil.example"}
    environment |= {"ANTHROPIC_BASE_URL": "http://evil.example", "OPD_TEACHER_BASE_URL": "http://evil.example"}
    assert read_settings(environment).teacher_base_url == DEFAULT_BASE_URL == transport.DEFAULT_BASE_URL


@pytest.mark.parametrize(("line", "told"), [('prices_confirmed_on = "soon"', "soon"), ("rate_limit_tpm = 0", "0")])
def test_a_value_for_paid_teachers_that_makes_no_sense_is_told(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "settings.toml").write_text(line + "\n")
    settings = read_settings({"OPD_HOME": str(tmp_path)})
    assert settings.prices_confirmed_on is None and settings.rate_limit_tpm is None
    assert told in settings.problems[0].what and "ignored" in settings.problems[0].what


def test_the_key_is_found_in_the_environment_first_and_is_in_no_settings(tmp_path: Path) -> None:
    home = HomePaths(tmp_path)
    assert find_api_key(home, {}) is None
    (tmp_path / ".env").write_text("export ANTHROPIC_API_KEY='sk-from-file'\n")
    assert find_api_key(home, {}) == "sk-from-file"
    assert find_api_key(home, {"ANTHROPIC_API_KEY": "sk-from-environment"}) == "sk-from-environment"
    assert find_api_key(home, {"ANTHROPIC_API_KEY": "${user_config.api_key}"}) == "sk-from-file"
    settings = read_settings({"OPD_HOME": str(tmp_path), "ANTHROPIC_API_KEY": "sk-from-environment"})
    assert settings.problems == () and "sk-" not in repr(settings)


def test_the_home_cannot_be_moved_by_a_file_inside_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPD_HOME=/elsewhere\n")
    settings = read_settings({"OPD_HOME": str(tmp_path)})
    assert settings.home.home == tmp_path and "OPD_HOME" in settings.problems[0].what


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("settings.toml", b"roots = [", "is not valid TOML"),
        ("settings.toml", b"roots = {a = 1}", "has the wrong type"),
        (".env", b"\xff\xfe=1", "is not UTF-8"),
        (".env", b"A=1\n" * 50_000, "is larger than"),
    ],
)
def test_a_damaged_file_is_a_problem_and_no_crash(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert told in problems_of({"OPD_HOME": str(tmp_path)})


def test_a_home_that_is_a_file_still_gives_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert read_settings({"OPD_HOME": str(tmp_path / "file")}).problems == ()


def test_a_tilde_of_nobody_is_kept_as_it_is() -> None:
    assert read_settings({"OPD_HOME": "~nobody-of-that-name/x"}).home.home.is_absolute()
