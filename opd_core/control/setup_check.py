"""Whether this machine can distil a model now, and what to do about each thing that is in the way."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from opd_core.blas import ADVICE, BlasReport, find_fast_blas, measure_sgemm
from opd_core.control.machine import (
    BLAS_FACT,
    GB,
    Device,
    Memory,
    free_disk_bytes,
    guess_device,
    package_version,
    read_memory,
)
from opd_core.control.models import LocalModels, list_models
from opd_core.control.paid_setup import PaidTeacherFacts, look_at_paid_teachers
from opd_core.errors import HomeError, OPDError
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import Settings
from opd_core.state.database import journal_mode
from opd_core.state.store import RunStore

PACKAGES = ("opd-server", "mlx", "mlx-lm", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "cmeel-openblas", "faiss-cpu")
NEEDED_PACKAGES = ("mlx", "mlx-lm")
MIN_FREE_DISK_BYTES = 2e9
MIN_FREE_MEMORY_BYTES = 2e9
# A GPU never goes through the CPU's BLAS; below this a CPU's rate is the reference BLAS's.
SLOW_GFLOPS = 15.0

MeasureBlas = Callable[[], BlasReport]


@dataclass(frozen=True)
class SetupProblem:
    """One thing in the way and its remedy; `blocking` when no run can start before it is mended."""

    what: str
    fix: str
    blocking: bool = False


@dataclass(frozen=True)
class SetupReport:
    """What was found. `blas` is `None` when the home is unusable; `active_run` is the run at work or about to be.

    `paid_teacher` is about teachers that cost money; `None` when the home is unusable.
    """

    home: str
    python: str
    sqlite: str
    device: Device
    versions: dict[str, str]
    memory: Memory
    disk_free_bytes: int | None
    blas: BlasReport | None
    models: LocalModels
    active_run: str | None
    problems: tuple[SetupProblem, ...]
    paid_teacher: PaidTeacherFacts | None = None

    @property
    def ready(self) -> bool:
        """Nothing found that would keep a run from starting."""
        return not any(problem.blocking for problem in self.problems)

    @property
    def facts(self) -> dict[str, Any]:
        """The findings as plain data, sizes in GB."""
        usable = [model.name for model in self.models.models if model.problem is None]
        return {
            "home": self.home,
            "device": self.device,
            "blas": asdict(self.blas) if self.blas else None,
            "python": self.python,
            "sqlite": self.sqlite,
            "versions": self.versions,
            "memory_total_gb": _gb(self.memory.total_bytes),
            "memory_free_gb": _gb(self.memory.available_bytes),
            "disk_free_gb": _gb(self.disk_free_bytes),
            "models": usable,
            "adapters": len(self.models.adapters),
            "active_run": self.active_run,
            **(self.paid_teacher.as_facts() if self.paid_teacher else {}),
        }


@dataclass
class _Home:
    """What reading the home gave."""

    usable: bool = True
    active_run: str | None = None
    problems: list[SetupProblem] = field(default_factory=list)


def check_setup(
    settings: Settings, *, roots: Roots, refresh: bool = False, measure: MeasureBlas = measure_sgemm
) -> SetupReport:
    """Look at everything a run needs; whatever is wrong is reported, nothing is raised for it.

    Takes about a second the first time, for the BLAS measurement, which is then kept in the home for these versions.

    Args:
        refresh: measure the BLAS again.
        measure: the measurement; another one in tests.
    """
    home = settings.home
    store = RunStore(home.database)
    found = _look_at_home(home, store)
    versions = {name: version for name in PACKAGES if (version := package_version(name))}
    device, memory, disk = guess_device(), read_memory(), free_disk_bytes(home.home)
    blas = _blas_report(store, versions, refresh, measure) if found.usable and "mlx" in versions else None
    models = list_models(home, roots) if found.usable else LocalModels((), ())
    paid_teacher, paid_problems = _paid_teacher(settings) if found.usable else (None, [])
    problems = [
        *found.problems,
        *_package_problems(versions),
        *_blas_problems(blas, device),
        *_capacity_problems(memory, disk),
        *_model_problems(home, models, found.usable),
        *paid_problems,
    ]
    store.close()
    return SetupReport(
        home=str(home.home),
        python=platform.python_version(),
        sqlite=f"{sqlite3.sqlite_version}, journal {journal_mode(sqlite3.sqlite_version_info[:3])}",
        device=device,
        versions=versions,
        memory=memory,
        disk_free_bytes=disk,
        blas=blas,
        models=models,
        active_run=found.active_run,
        problems=tuple(problems),
        paid_teacher=paid_teacher,
    )


def _look_at_home(home: HomePaths, store: RunStore) -> _Home:
    """Make the home's folders and read its runs."""
    found = _Home()
    try:
        home.prepare()
        rows = store.live()
        waiting = store.next_queued()
        found.active_run = rows[0].run_id if rows else waiting.run_id if waiting else None
    except HomeError as error:
        found.usable = False
        fix = "Make the folder writable, or set OPD_HOME to one that is, and start the server again."
        found.problems.append(SetupProblem(str(error), fix, blocking=True))
    except OPDError as error:
        found.usable = False
        fix = f"Move {home.database} away and call check_setup again; the files of past runs stay."
        found.problems.append(SetupProblem(str(error), fix, blocking=True))
    return found


def _blas_report(store: RunStore, versions: dict[str, str], refresh: bool, measure: MeasureBlas) -> BlasReport:
    """The measured speed, from the home's facts when it was measured with these very packages."""
    known = None if refresh else store.get_fact(BLAS_FACT)
    # a BLAS installed or removed since counts like another version
    measured_with = {**versions, "blas": find_fast_blas().source}
    if isinstance(known, dict) and known.get("versions") == measured_with:
        try:
            return BlasReport(**{name: value for name, value in known.items() if name != "versions"})
        except TypeError:
            pass  # written by another version of this program
    report = measure()
    if report.gflops is not None:
        store.set_fact(BLAS_FACT, {**asdict(report), "versions": measured_with})
    return report


def _package_problems(versions: dict[str, str]) -> list[SetupProblem]:
    return [
        SetupProblem(f"The package {name} is not installed.", "Install this program again.", blocking=True)
        for name in NEEDED_PACKAGES
        if name not in versions
    ]


def _blas_problems(blas: BlasReport | None, device: Device) -> list[SetupProblem]:
    if blas is None:
        return []
    if blas.gflops is None:
        fix = "Run `opd doctor` in a terminal to see the whole message; MLX may not run on this machine."
        return [SetupProblem(f"MLX's speed could not be measured: {blas.reason}.", fix, blocking=True)]
    if device == "cpu" and (blas.source == "reference" or blas.gflops < SLOW_GFLOPS):
        what = f"MLX multiplies matrices at only {blas.gflops:g} GFLOP/s here, on a {blas.source} BLAS ({blas.reason})."
        return [SetupProblem(what, f"{ADVICE[:1].upper()}{ADVICE[1:]}; then call check_setup again.")]
    return []


def _capacity_problems(memory: Memory, disk_free_bytes: int | None) -> list[SetupProblem]:
    problems = []
    if memory.available_bytes is not None and memory.available_bytes < MIN_FREE_MEMORY_BYTES:
        what = f"Only {memory.available_bytes / GB:.1f} GB of memory are free."
        problems.append(SetupProblem(what, "Close other programs, or use a smaller model."))
    if disk_free_bytes is not None and disk_free_bytes < MIN_FREE_DISK_BYTES:
        what = f"Only {disk_free_bytes / GB:.1f} GB of disk are free where OPD_HOME lies."
        problems.append(SetupProblem(what, "Free some space, or set OPD_HOME to a folder on a larger disk."))
    return problems


def _model_problems(home: HomePaths, models: LocalModels, home_usable: bool) -> list[SetupProblem]:
    if not home_usable or any(model.problem is None for model in models.models):
        return []
    fix = (
        f"Put an MLX model folder under {home.models}, import one with `opd import-gguf FILE {home.models}/NAME`, "
        "or give the path of a model folder as base_model_path."
    )
    return [SetupProblem("No usable model was found in OPD_HOME/models or the hub cache.", fix)]


def _paid_teacher(settings: Settings) -> tuple[PaidTeacherFacts | None, list[SetupProblem]]:
    """Never blocking: local teachers work whatever is wrong here."""
    fix = "Until then use a local teacher (teacher_kind 'local'), which costs nothing."
    try:
        facts, problems = look_at_paid_teachers(settings)
    except OPDError as error:
        return None, [SetupProblem(str(error), fix)]
    if facts.paid_calls_frozen:
        what = "Paid calls are frozen for this month: one cost more than was reserved, or could not be priced."
        return facts, [SetupProblem(what, "A person compares the provider's bill with the ledger. " + fix)]
    return facts, [SetupProblem(str(problem), fix) for problem in problems]


def _gb(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / GB, 2)
