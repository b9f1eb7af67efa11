"""Which BLAS is found and loaded, with stand-ins for the machine, and once each for real (slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opd_core import blas

AVX512 = blas.CMEEL_CPU_FLAGS | {"avx2", "fma"}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other platforms bring a fast BLAS themselves")


class Machine:
    """A stand-in for CPU, linker and installed packages; the library files are not libraries."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flags: frozenset[str] = AVX512
        self.system: set[str] = set()
        self.packages = {
            "cmeel-openblas": self.files(folder / "lib", "libopenblas.so.0"),
            "faiss-cpu": self.files(
                folder / "faiss_cpu.libs",
                "libgomp-1.so.1.0.0",
                "libopenblaso-r0-2.so",
                "libquadmath-3.so.0.0.0",
                "libgfortran-4.so.5.0.0",
            ),
            "mlx-cpu": self.files(
                folder / "mlx_cpu.libs", "libgfortran-5.so.5.0.0", "libquadmath-6.so.0.0.0", "libblas-7.so.3"
            ),
        }
        monkeypatch.setattr(blas, "_cpu_flags", lambda: self.flags)
        monkeypatch.setattr(blas, "_linker_finds", lambda name: name in self.system)
        monkeypatch.setattr(blas, "_package_files", lambda package: self.packages.get(package, []))
        monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")  # put back afterwards
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"):
            monkeypatch.delenv(name, raising=False)

    @staticmethod
    def files(folder: Path, *names: str) -> list[Path]:
        folder.mkdir()
        for name in names:
            (folder / name).write_text("not a library")
        return [folder / name for name in names]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@linux_only
def test_the_systems_openblas_comes_first(machine: Machine) -> None:
    machine.system.add("libopenblas.so.0")
    assert blas.find_fast_blas().source == "system"


@linux_only
def test_cmeel_is_chosen_where_the_system_has_none(machine: Machine) -> None:
    found = blas.find_fast_blas()
    assert (found.source, found.path) == ("cmeel-openblas", str(machine.packages["cmeel-openblas"][0]))


@linux_only
@pytest.mark.parametrize("lacking", sorted(blas.CMEEL_CPU_FLAGS))
def test_cmeel_is_never_chosen_on_a_cpu_that_lacks_one_avx512_part(machine: Machine, lacking: str) -> None:
    machine.flags = AVX512 - {lacking}
    found = blas.find_fast_blas()
    assert found.source == "faiss-cpu"
    assert "AVX-512" in found.reason


@linux_only
def test_cmeel_is_passed_over_when_nothing_brings_its_fortran_library(machine: Machine) -> None:
    machine.packages["mlx-cpu"] = []
    assert blas.find_fast_blas().source == "faiss-cpu"
    machine.system.add("libgfortran.so.5")
    assert blas.find_fast_blas().source == "cmeel-openblas"


@linux_only
def test_faiss_libraries_are_loaded_after_the_ones_they_need(machine: Machine) -> None:
    assert [path.name.partition("-")[0] for path in blas._faiss_libraries()] == [
        "libquadmath",
        "libgfortran",
        "libgomp",
        "libopenblaso",
    ]


@linux_only
@pytest.mark.parametrize("flags", [frozenset[str](), frozenset({"avx2"})])
def test_reference_blas_is_reported_with_every_reason_and_the_remedy(machine: Machine, flags: frozenset[str]) -> None:
    machine.flags = flags
    found = blas.find_fast_blas()
    assert (found.source, found.path) == ("reference", None)
    for part in ("libopenblas.so.0", "AVX-512", "AVX2", "apt install"):
        assert part in found.reason


@linux_only
def test_libraries_that_do_not_load_are_passed_over_without_an_exception(machine: Machine) -> None:
    loaded = blas.load_fast_blas()
    assert loaded.source == "reference"
    assert "cmeel-openblas did not load" in loaded.reason
    assert "faiss-cpu did not load" in loaded.reason


@linux_only
def test_worker_environment_links_the_fortran_library_under_its_plain_name(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    environment = blas.worker_environment(links)
    assert environment["OPENBLAS_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) - 1))
    assert environment["LD_LIBRARY_PATH"] == f"{links}:/opt/lib"
    fortran, quadmath, _ = machine.packages["mlx-cpu"]
    assert {link.name: link.readlink() for link in links.iterdir()} == {
        "libgfortran.so.5": fortran,
        quadmath.name: quadmath,
    }


@linux_only
def test_links_follow_an_upgraded_wheel_and_survive_many_makers_at_once(machine: Machine, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "libgfortran.so.5").symlink_to(tmp_path / "gone")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(blas.worker_environment, [links] * 32))
    assert {link.name for link in links.iterdir()} == {"libgfortran.so.5", machine.packages["mlx-cpu"][1].name}
    assert all(link.exists() for link in links.iterdir())


@linux_only
def test_worker_environment_keeps_what_the_person_set_and_needs_no_writable_folder(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    occupied = tmp_path / "file"
    occupied.touch()
    environment = blas.worker_environment(occupied)
    assert "OPENBLAS_NUM_THREADS" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "LD_LIBRARY_PATH" not in environment


def test_other_platforms_need_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.load_fast_blas().source == "accelerate"
    assert blas.worker_environment(tmp_path / "links") == {}


def test_a_measurement_that_fails_or_takes_too_long_reports_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    late = blas.measure_sgemm(timeout_seconds=0.001)
    assert late.gflops is None
    assert "0.001 seconds" in late.reason
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    absent = blas.measure_sgemm()
    assert absent.gflops is None
    assert "did not start" in absent.reason
    monkeypatch.setattr(sys, "executable", "false")
    failed = blas.measure_sgemm()
    assert failed.gflops is None
    assert "status 1" in failed.reason


def test_importing_the_module_imports_no_array_library() -> None:
    code = "import sys, opd_core.blas; print([n for n in ('mlx', 'numpy') if n in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


@pytest.mark.slow
def test_measurement_in_a_child_process_gives_a_rate_and_names_the_device() -> None:
    report = blas.measure_sgemm()
    assert report.gflops is not None and report.gflops > 0, report.reason
    assert report.device in ("cpu", "gpu")


CHILD = """
import json, sys, opd_core.blas as blas
lacking, flags = set(sys.argv[1:]), blas._cpu_flags()
blas._cpu_flags = lambda: flags - lacking
blas._linker_finds = lambda name: False  # as on a machine without OpenBLAS and libgfortran
loaded = blas.load_fast_blas()
import mlx.core as mx
left, right = mx.random.normal((96, 200)), mx.random.normal((200, 64))
exact = (left[:, :, None] * right[None]).sum(1)
error = mx.abs(left @ right - exact).max().item()
print(json.dumps([loaded.source, blas._time_matmul()[1], error]))
"""


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize(("lacking", "expected"), [("none", "cmeel-openblas"), ("avx512f", "faiss-cpu")])
def test_each_pip_installed_openblas_replaces_the_reference_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str, expected: str
) -> None:
    needed = AVX512 if expected == "cmeel-openblas" else {"avx2", "fma"}
    if not blas._cpu_flags() >= needed:
        pytest.skip(f"this CPU cannot run {expected}")
    monkeypatch.setattr(blas, "_linker_finds", lambda name: False)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)  # the choice of kernels is ours to make
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = os.environ | blas.worker_environment(tmp_path) | one_thread

    def child(*flags: str) -> tuple[str, float, float]:
        command = [sys.executable, "-c", CHILD, *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        source, gflops, error = json.loads(done.stdout)
        return source, gflops, error

    source, gflops, error = child(lacking)
    reference, slow_gflops, _ = child("avx512f", "avx2")
    assert (source, reference) == (expected, "reference")
    assert gflops > 3 * slow_gflops
    assert error < 1e-4
