"""The BLAS under MLX on Linux: find a fast one, load it before MLX, measure what it does.

MLX's Linux wheel links a reference BLAS (2-6 GFLOP/s in float32). Any OpenBLAS that exports the plain names
and is loaded with RTLD_GLOBAL *before* `mlx.core` answers MLX's `cblas_sgemm` instead, about thirty times as
fast. Nothing here imports MLX except the child process of `measure_sgemm`: the server may ask what there is,
and the worker calls `load_fast_blas` first of all.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

BlasSource = Literal["accelerate", "system", "cmeel-openblas", "faiss-cpu", "reference"]

SYSTEM_LIBRARY = "libopenblas.so.0"
FORTRAN_LIBRARY = "libgfortran.so.5"
# cmeel's OpenBLAS is built for SkylakeX without run-time dispatch: on a lesser CPU it dies of SIGILL.
CMEEL_CPU_FLAGS = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})
# The libraries inside faiss-cpu, in the order in which each finds its own dependencies loaded.
FAISS_LIBRARIES = ("libquadmath", "libgfortran", "libgomp", "libopenblas")
ADVICE = "for about 30 times the speed install OpenBLAS (Debian, Ubuntu: apt install libopenblas0-pthread)"


@dataclass(frozen=True)
class FastBlas:
    """The BLAS that MLX will use (or uses): where it comes from, its file, and why this one."""

    source: BlasSource
    path: str | None
    reason: str


@dataclass(frozen=True)
class BlasReport:
    """A measured float32 matrix-multiplication rate; `gflops` is None when nothing could be measured."""

    source: BlasSource
    path: str | None
    device: str | None
    gflops: float | None
    reason: str


def core_count() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def find_fast_blas() -> FastBlas:
    """The first OpenBLAS this machine can run, by looking only; nothing is loaded, nothing is raised.

    Order: the system's, `cmeel-openblas` (AVX-512 only), the copy in `faiss-cpu` (AVX2), else the reference.
    """
    if sys.platform != "linux":
        return FastBlas("accelerate", None, "MLX uses the platform's own BLAS")
    refusals: list[str] = []
    return next(_usable(refusals), None) or _reference(refusals)


def load_fast_blas() -> FastBlas:
    """Load the fast BLAS into this process; call it before anything imports MLX.

    Start the process with `worker_environment`, else cmeel's copy may not find its Fortran library. Whatever
    cannot be loaded is passed over for the next and named in `reason`; nothing is raised.
    """
    if sys.platform != "linux":
        return find_fast_blas()
    refusals: list[str] = []
    for blas in _usable(refusals):
        try:
            _load(blas)
        except OSError as error:
            refusals.append(f"{blas.source} did not load ({error})")
        else:
            return blas
    return _reference(refusals)


def worker_environment(link_dir: Path) -> dict[str, str]:
    """Environment variables to add when starting a process that will call `load_fast_blas`.

    `link_dir` is a folder of ours. Where the system has no libgfortran, links are made in it to the MLX
    wheel's renamed copies; several processes may do so at once, and an unwritable folder only costs speed.
    """
    if sys.platform != "linux":
        return {}
    # One core stays free: OpenBLAS threads spin while they wait for each other, and on a core they have to share with
    # anything else a decoding step was seen to take 20 times as long.
    spare = str(max(1, core_count() - 1))
    threads = os.environ.get("OPENBLAS_NUM_THREADS", spare)
    # faiss-cpu's OpenBLAS is an OpenMP build and reads the second name.
    extra = {name: threads for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS") if name not in os.environ}
    if find_fast_blas().source == "cmeel-openblas" and not _linker_finds(FORTRAN_LIBRARY):
        with contextlib.suppress(OSError):
            _link_fortran(link_dir)
            extra["LD_LIBRARY_PATH"] = ":".join([str(link_dir.absolute()), *_library_folders()])
    return extra


def measure_sgemm(timeout_seconds: float = 30) -> BlasReport:
    """Measure in a child process how fast MLX multiplies float32 matrices in a worker; nothing is raised."""
    with tempfile.TemporaryDirectory(prefix="opd_blas_") as folder:
        environment = os.environ | worker_environment(Path(folder))
        command = [sys.executable, "-P", "-m", "opd_core.blas"]
        try:
            child = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            problem = f"the measurement did not end within {timeout_seconds:g} seconds"
        except OSError as error:
            problem = f"the measuring process did not start ({error})"
        else:
            if child.returncode == 0:
                return BlasReport(**json.loads(child.stdout.splitlines()[-1]))
            problem = f"the measuring process ended with status {child.returncode}: {child.stderr[-300:].strip()}"
    found = find_fast_blas()
    return BlasReport(found.source, found.path, None, None, problem)


def main() -> None:
    """Load the fast BLAS, time MLX on its default device and print one JSON line (a `BlasReport`)."""
    blas = load_fast_blas()
    device, gflops = _time_matmul()
    print(json.dumps(asdict(BlasReport(blas.source, blas.path, device, gflops, blas.reason))))


def _time_matmul(seconds: float = 0.3, width: int = 1024) -> tuple[str, float]:
    """The default device's name and its best rate in GFLOP/s over repeated `width`³ float32 products."""
    import mlx.core as mx

    def product_seconds(size: int) -> float:
        left, right = mx.random.normal((size, size)), mx.random.normal((size, size))
        mx.eval(left, right)
        start = time.perf_counter()
        mx.eval(left @ right)
        return time.perf_counter() - start

    product_seconds(256)  # starts the threads or the GPU queue
    best = product_seconds(width)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, product_seconds(width))
    return str(mx.default_device().type).rpartition(".")[2], round(2 * width**3 / best / 1e9, 1)


def _usable(refusals: list[str]) -> Iterator[FastBlas]:
    """Every OpenBLAS whose files and CPU demands are met, best first; the others' faults go to `refusals`."""
    flags = _cpu_flags()

    def chosen(source: BlasSource, path: str, what: str) -> FastBlas:
        return FastBlas(source, path, "; ".join([what, *refusals]))

    if _linker_finds(SYSTEM_LIBRARY):
        yield chosen("system", SYSTEM_LIBRARY, "OpenBLAS of the system")
    else:
        refusals.append(f"no {SYSTEM_LIBRARY} on the system")

    cmeel = [path for path in _package_files("cmeel-openblas") if path.name == SYSTEM_LIBRARY]
    if not cmeel:
        refusals.append("cmeel-openblas is not installed")
    elif not flags >= CMEEL_CPU_FLAGS:
        refusals.append("cmeel-openblas needs a CPU with AVX-512")
    elif not (_linker_finds(FORTRAN_LIBRARY) or _fortran_copies()):
        refusals.append(f"cmeel-openblas needs {FORTRAN_LIBRARY}")
    else:
        yield chosen("cmeel-openblas", str(cmeel[0]), "OpenBLAS of cmeel-openblas (AVX-512)")

    faiss = _faiss_libraries()
    if not faiss:
        refusals.append("faiss-cpu is not installed")
    elif not flags >= {"avx2", "fma"}:
        refusals.append("the OpenBLAS of faiss-cpu needs a CPU with AVX2")
    else:
        yield chosen("faiss-cpu", str(faiss[-1]), "OpenBLAS of faiss-cpu (AVX2)")


def _reference(refusals: list[str]) -> FastBlas:
    return FastBlas("reference", None, f"MLX uses its slow reference BLAS: {'; '.join(refusals)}; {ADVICE}")


def _load(blas: FastBlas) -> None:
    """Load into the global symbol scope; raises OSError when a library or the needed symbol is missing."""
    libraries = [blas.path]
    if blas.source == "faiss-cpu":
        # Its own detection takes many virtual machines for a 2004 CPU, at a fifth of the speed.
        os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
        libraries = [str(path) for path in _faiss_libraries()]
    handles = [ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in libraries]
    if not hasattr(handles[-1], "cblas_sgemm"):
        raise OSError("it has no cblas_sgemm")


def _faiss_libraries() -> list[Path]:
    """The bundled libraries in loading order, OpenBLAS last; empty when there is no OpenBLAS among them."""
    bundled = [path for path in _package_files("faiss-cpu") if path.parent.name == "faiss_cpu.libs"]
    ordered = [path for stem in FAISS_LIBRARIES for path in bundled if path.name.startswith(stem)]
    return ordered if ordered and ordered[-1].name.startswith("libopenblas") else []


def _fortran_copies() -> dict[str, Path]:
    """Name the linker asks for, to the MLX wheel's copy; empty unless libgfortran is among them."""
    copies = {
        # libgfortran asks for its libquadmath by the renamed name, beside the path it was found under
        FORTRAN_LIBRARY if path.name.startswith("libgfortran-") else path.name: path
        for path in _package_files("mlx-cpu")
        if path.name.startswith(("libgfortran-", "libquadmath-"))
    }
    return copies if FORTRAN_LIBRARY in copies else {}


def _link_fortran(link_dir: Path) -> None:
    """Make the links, each by one rename, so that processes doing the same never see a missing one."""
    link_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, target in _fortran_copies().items():
        link = link_dir / name
        if not (link.is_symlink() and link.readlink() == target):
            temporary = link_dir / f".{name}.{secrets.token_hex(8)}"
            temporary.symlink_to(target)
            temporary.replace(link)


def _package_files(package: str) -> list[Path]:
    """The installed files of a package, without importing it; empty when it is not installed."""
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    shared = [Path(str(file.locate())).resolve() for file in listed if ".so" in file.name]
    return [path for path in shared if path.exists()]


def _cpu_flags() -> frozenset[str]:
    """The CPU's feature flags as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _library_folders() -> list[str]:
    return [entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]


def _linker_finds(name: str) -> bool:
    """Whether the dynamic linker would find a library by its plain name."""
    if any((Path(folder) / name).exists() for folder in _library_folders()):
        return True
    with contextlib.suppress(OSError):
        listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
        return any(line.split()[:1] == [name] for line in listing.splitlines())
    return False


if __name__ == "__main__":
    main()
