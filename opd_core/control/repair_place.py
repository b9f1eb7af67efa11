"""One run of a home as the checks of a repair see it, and what a check says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from opd_core.paths import HomePaths
from opd_core.state.database import Database
from opd_core.state.rows import RunRow


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: where, what, and what mending does; `mend` is None when a person must."""

    run_id: str
    path: Path
    what: str
    remedy: str
    mend: Callable[[], None] | None


@dataclass(frozen=True)
class Place:
    """One run of a home as the checks see it; `row` is None when the database does not know it."""

    home: HomePaths
    database: Database
    run_id: str
    row: RunRow | None

    @property
    def checkpoints(self) -> Path:
        """Where the run's adapter and checkpoints lie."""
        elsewhere = self.row.config.get("checkpoint_dir") if self.row else None
        return Path(elsewhere) / self.run_id if elsewhere else self.home.checkpoints(self.run_id)

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the folder of the checkpoints, outside the home, is missing as a whole."""
        folder = self.checkpoints.parent
        return not folder.is_relative_to(self.home.home) and not folder.is_dir()

    def aside(self, path: Path) -> Callable[[], None]:
        """Move a file out of the way, into `set_aside/` under the home, under a name that is free there."""

        def move() -> None:
            folder = self.home.home / "set_aside"
            folder.mkdir(mode=0o700, exist_ok=True)
            number, target = 1, folder / path.name
            while target.exists():
                number, target = number + 1, folder / f"{path.name}.{number}"
            path.rename(target)

        return move

    def append_only_files(self) -> Iterator[tuple[Path, bool]]:
        """The run's JSONL files, and whether their text was paid for."""
        config = self.row.config if self.row else {}
        for split, series in (("train", "train"), ("val", "eval")):
            yield self.home.rollouts(self.run_id, split, config), False
            yield self.home.metrics(self.run_id, series), False
        yield self.home.completions(self.run_id), True
