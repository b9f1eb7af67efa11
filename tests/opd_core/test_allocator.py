"""A worker keeps its memory: it is started with the allocator's settings, unless a person has set others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opd_core.allocator import KEPT, NAME, allocator_environment

FREED_THEN_HELD = """
import ctypes
from opd_core.allocator import give_back_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 64 * 1024 * 1024
def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
before = held()
block = libc.malloc(size)
ctypes.memset(block, 1, size)
libc.free(block)
kept = held() - before
give_back_memory()
print(kept / size, (held() - before) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_memory_stays_with_a_process_that_is_started_with_them_until_it_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(NAME, raising=False)

    def shares_held(environment: dict[str, str]) -> list[float]:
        command = [sys.executable, "-c", FREED_THEN_HELD]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [float(share) for share in found.stdout.split()]

    assert max(shares_held({})) < 0.5
    kept, given_back = shares_held(allocator_environment())
    assert kept > 0.9
    assert given_back < 0.5


def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(NAME, raising=False)
    assert allocator_environment() == {NAME: KEPT}
    monkeypatch.setenv(NAME, "glibc.malloc.check=3")
    assert allocator_environment() == {NAME: "glibc.malloc.check=3"}


def test_other_platforms_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator_environment() == {}
