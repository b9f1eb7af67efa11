"""Everything a person sets from outside, read once into one frozen object.

Three places, the first that names a value wins: the environment, `OPD_HOME/.env` (lines of KEY=VALUE) and
`OPD_HOME/settings.toml` (the same names in lower case without OPD_). Reading never fails and makes nothing:
what is wrong becomes a `Problem`, which `check_setup` shows, so that the server always starts and can say it. The
worker reads them again for itself. The API key is never part of them: it is looked up when it is needed, and not shown.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from opd_core.paths import HomePaths, default_home
from opd_core.types import clean_text

MAX_SETTINGS_BYTES = 100_000
DEFAULT_MAX_BUDGET_USD = 100.0
KNOWN = (
    *("OPD_ROOTS", "OPD_MAX_BUDGET_USD", "OPD_CHECKPOINT_DIR", "OPD_CACHE_DIR"),
    *("OPD_DEFAULT_TEACHER", "OPD_MONTHLY_BUDGET_USD", "OPD_RATE_LIMIT_TPM"),
)
KEY_VARIABLE = "ANTHROPIC_API_KEY"
# Only a person who can write the home's files sets these: an environment variable never moves paid requests elsewhere.
FILE_ONLY = ("teacher_base_url", "prices_confirmed_on")
DEFAULT_BASE_URL = "https://api.anthropic.com"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what a person can do about it."""

    what: str
    fix: str


@dataclass(frozen=True)
class Settings:
    """The frozen settings of one process.

    `roots` are further folders that models and files may come from; `checkpoint_dir` and `cache_dir` are folders
    outside OPD_HOME that a person allowed for checkpoints and rollouts; `max_budget_usd` is the ceiling of one
    run's budget, `monthly_budget_usd` of everything in a calendar month (UTC), where the lowest setting of all servers
    of a home rules (`money/months.py`). `default_teacher` is the paid teacher of runs that name none (None: this
    program's own choice); `rate_limit_tpm` is the most tokens a minute for it; `prices_confirmed_on` the day a person
    compared the price table with the provider's page.
    """

    home: HomePaths
    roots: tuple[Path, ...] = ()
    max_budget_usd: float = DEFAULT_MAX_BUDGET_USD
    checkpoint_dir: Path | None = None
    cache_dir: Path | None = None
    monthly_budget_usd: float = DEFAULT_MAX_BUDGET_USD
    default_teacher: str | None = None
    rate_limit_tpm: int | None = None
    teacher_base_url: str = DEFAULT_BASE_URL
    prices_confirmed_on: date | None = None
    problems: tuple[Problem, ...] = ()


def read_settings(environment: Mapping[str, str] | None = None, home: Path | None = None) -> Settings:
    """Read the settings; nothing is raised and nothing is written.

    Args:
        environment: instead of the process environment.
        home: instead of OPD_HOME.
    """
    environment = os.environ if environment is None else environment
    paths = HomePaths(home.absolute() if home else _folder(environment.get("OPD_HOME")) or default_home())
    problems: list[Problem] = []
    values = _toml_values(paths.home / "settings.toml", problems) | _env_values(paths.home / ".env", problems)
    _note_unknown_variables(environment, problems)
    values |= {name: environment[name] for name in KNOWN if environment.get(name)}
    max_budget_usd = _budget(values, "OPD_MAX_BUDGET_USD", DEFAULT_MAX_BUDGET_USD, problems)
    return Settings(
        home=paths,
        roots=tuple(folder for part in values.get("OPD_ROOTS", "").split(os.pathsep) if (folder := _folder(part))),
        max_budget_usd=max_budget_usd,
        checkpoint_dir=_folder(values.get("OPD_CHECKPOINT_DIR")),
        cache_dir=_folder(values.get("OPD_CACHE_DIR")),
        monthly_budget_usd=_budget(values, "OPD_MONTHLY_BUDGET_USD", max_budget_usd, problems),
        default_teacher=values.get("OPD_DEFAULT_TEACHER", "").strip() or None,
        rate_limit_tpm=_whole_number(values, "OPD_RATE_LIMIT_TPM", problems),
        teacher_base_url=values.get("teacher_base_url", DEFAULT_BASE_URL),
        prices_confirmed_on=_day(values.get("prices_confirmed_on"), problems),
        problems=tuple(problems),
    )


def find_api_key(home: HomePaths, environment: Mapping[str, str] | None = None) -> str | None:
    """The teacher's key from the environment, else from `OPD_HOME/.env`; for the one who calls, never for showing."""
    found = (os.environ if environment is None else environment).get(KEY_VARIABLE, "").strip()
    if found.startswith("${"):  # a host's placeholder that nobody filled in
        found = ""
    return found or _env_values(home.home / ".env", []).get(KEY_VARIABLE)


def _folder(value: str | None) -> Path | None:
    if not value or not value.strip():
        return None
    path = Path(value.strip())
    with contextlib.suppress(RuntimeError):  # ~ of a user there is not
        path = path.expanduser()
    return path.absolute()


def _budget(values: Mapping[str, str], name: str, default: float, problems: list[Problem]) -> float:
    """An amount in dollars; a value that is no amount allows nothing, since more was surely not meant."""
    value = values.get(name)
    if value is None:
        return default
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if amount >= 0 and math.isfinite(amount):
        return amount
    problems.append(
        Problem(
            f"{name} is {clean_text(value, 40)!r}, which is not an amount of dollars; 0 is used.",
            "Write a number such as 5 or 12.50.",
        )
    )
    return 0.0


def _whole_number(values: Mapping[str, str], name: str, problems: list[Problem]) -> int | None:
    value = values.get(name, "").strip()
    if not value:
        return None
    if value.isdecimal() and int(value) > 0:
        return int(value)
    problems.append(Problem(f"{name} is {clean_text(value, 40)!r}; it was ignored.", "Write a number such as 10000."))
    return None


def _day(value: str | None, problems: list[Problem]) -> date | None:
    try:
        return None if value is None else date.fromisoformat(value)
    except ValueError:
        what = f"prices_confirmed_on is {clean_text(value or '', 40)!r}, which is not a day; it was ignored."
        problems.append(Problem(what, "Write the day of the comparison, such as 2026-11-23."))
        return None


def _read(path: Path, problems: list[Problem]) -> str:
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            problems.append(Problem(f"{path} is larger than {MAX_SETTINGS_BYTES} bytes.", "Make it smaller."))
            return ""
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(Problem(f"{path} cannot be read: {reason}.", "Make it a text file you can read."))
        return ""


def _env_values(path: Path, problems: list[Problem]) -> dict[str, str]:
    """KEY=VALUE lines; comments, blank lines, a leading `export` and one pair of quotes are understood."""
    values = {}
    for number, raw in enumerate(_read(path, problems).splitlines(), start=1):
        line = raw.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not separator:
            problems.append(Problem(f"Line {number} of {path} is not KEY=VALUE.", "Correct or remove it."))
            continue
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if name in (*KNOWN, KEY_VARIABLE):
            values[name] = value
        else:
            problems.append(_unknown(f"{clean_text(name, 60)} in {path}", name, (*KNOWN, KEY_VARIABLE)))
    return {name: value for name, value in values.items() if value}


def _toml_values(path: Path, problems: list[Problem]) -> dict[str, str]:
    text = _read(path, problems)
    if not text:
        return {}
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.append(Problem(f"{path} is not valid TOML: {clean_text(str(error), 200)}.", "Correct that line."))
        return {}
    known = {name.removeprefix("OPD_").lower(): name for name in KNOWN} | {name: name for name in FILE_ONLY}
    values = {}
    for key, value in data.items():
        if key not in known:
            problems.append(_unknown(f"{clean_text(key, 60)} in {path}", key, known))
        elif isinstance(value, list) and all(isinstance(part, str) for part in value):
            values[known[key]] = os.pathsep.join(value)
        elif isinstance(value, str | int | float | date) and not isinstance(value, bool):
            values[known[key]] = str(value)
        else:
            problems.append(
                Problem(f"{key} in {path} has the wrong type.", "Write a text, a number, a day or a list of texts.")
            )
    return values


def _note_unknown_variables(environment: Mapping[str, str], problems: list[Problem]) -> None:
    allowed = ("OPD_HOME", *KNOWN)
    for name in sorted(environment):
        if name.startswith("OPD_") and name not in allowed:
            problems.append(_unknown(f"The environment variable {clean_text(name, 60)}", name, allowed))


def _unknown(what: str, name: str, allowed: Mapping[str, str] | tuple[str, ...]) -> Problem:
    near = difflib.get_close_matches(name, list(allowed), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(allowed)}."
    return Problem(f"{what} is not a setting; it was ignored.", hint)
