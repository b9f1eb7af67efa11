"""The house rules, checked on the source: which room may import which, what the wheel holds, what no file may say."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Room to the rooms it may import; "ground" is every plain module of opd_core and the demo's data.
ALLOWED_ROOMS = {
    "ground": {"ground"},
    "state": {"ground", "state"},
    "money": {"ground", "state", "money"},
    "control": {"ground", "state", "money", "control"},
    "server": {"ground", "state", "money", "control", "server"},
    "training": {"ground", "training"},
    "teachers": {"ground", "money", "training", "teachers"},
    # the worker starts the next queued job when it ends: that is control's supervisor
    "worker": {"ground", "state", "money", "control", "training", "teachers", "worker"},
}
MLX = {"mlx", "mlx_lm", "transformers"}
# blas.py imports it in the child process that measures it
MLX_PLACES = {"training", "teachers", "worker"}
FRONT_DOOR = {"mcp", "mcp_types", "starlette", "uvicorn", "rich"}
REMOTE = {"anthropic", "requests", "httpx", "httpx2", "urllib3"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".yaml", ".yml", ""}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "server":
        return "server"
    if len(parts) > 1 and parts[1] in ALLOWED_ROOMS:
        return parts[1]
    return "ground"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", list(sources("server", "opd_core")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(module_of(path))
    for name, line in imports_of(path):
        top = name.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}"
        if top in ("server", "opd_core") and name not in ("opd_core", "opd_core.__version__"):
            assert room_of(name) in ALLOWED_ROOMS[room], f"{where}: {room} imports {name}"
        if top in MLX:
            assert room in MLX_PLACES or path.name == "blas.py", f"{where}: {room} imports {name}"
        if top in FRONT_DOOR:
            assert room == "server", f"{where}: {room} imports {name}"
        assert top not in REMOTE or room == "teachers", f"{where} imports {name}"
        assert top != "tests", f"{where} imports {name}"


def test_the_rooms_of_the_rules_exist() -> None:
    rooms = {room_of(module_of(path)) for path in sources("server", "opd_core")}
    assert rooms >= {"ground", "state", "control", "server", "training", "teachers", "worker"}


def test_no_light_module_is_reached_only_through_a_heavy_one() -> None:
    """What `opd_core/__init__` imports, everybody imports: it must import nothing."""
    assert list(imports_of(ROOT / "opd_core" / "__init__.py")) == []


def test_no_file_names_this_machine_or_a_package_host() -> None:
    hosts = ("pypi" + ".org", "python" + "hosted", "conda" + ".anaconda")
    machine = re.compile(r"(?<![\w.])/(?:" + "work" + r"/|ro" + r"ot/|tmp/" + "opd)")
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if not path.is_file() or parts[0] == "OnPolicyDistill" or any(part.startswith(".") for part in parts):
            continue
        if path.suffix not in TEXT_SUFFIXES or "__pycache__" in parts:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not machine.search(line), f"{path.relative_to(ROOT)}:{number} names a path of one machine"
            assert not any(host in line for host in hosts), f"{path.relative_to(ROOT)}:{number} names a host"


def test_the_project_is_private_and_has_one_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"opd": "server.cli:main"}
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["server", "opd_core"]


def test_git_ignores_no_file_that_belongs_in_the_wheel() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = [str(path) for folder in ("server", "opd_core") for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path and not path.endswith(".tmp")]
    ignored = subprocess.run(
        ["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert ignored == ""


def test_the_wheel_holds_both_packages_with_their_data_and_nothing_else(tmp_path: Path) -> None:
    wheels = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (wheel,) = wheels.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("server", "opd_core")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == wanted
