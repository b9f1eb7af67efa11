"""The HTTP server under load: how fast, how steady, and what it takes away from a run that trains beside it.

Four parts against a real `opd serve --http` in a process of its own:
  floor     one client, one call after the other: /health (no verb) and get_status
  full      16 clients, mixed calls, as fast as they can, nothing else running: errors, growth of memory
  training  the same clients at 20 calls a second together beside a run of the tiny model; windows with and without
  readers   50 sockets on the live feed, ten of which take nothing, while a writer floods it
Exit code 1 when a promise is broken: an error, memory that grows, get_status p99 of 100 ms or more, a tenth of the
training speed lost, a reader that misses a message, a stalled one that is not dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from opd_core.paths import HomePaths  # noqa: E402
from opd_core.state.store import RunStore  # noqa: E402
from tests.tiny import write_tiny_model  # noqa: E402

CLIENTS = 16
CALLS_A_SECOND = 20.0
READERS, STALLED = 50, 10
FLOOD_EVENTS = 3000
PROMISED_P99_MILLISECONDS = 100.0
PROMISED_SPEED = 0.9
ALLOWED_GROWTH_BYTES = 8_000_000
DROP_SECONDS = 60.0
RUN_ID = "opd_recorded"
STATUS = f"/opd/status?run_id={RUN_ID}"
MIXED = (
    *(STATUS, f"/opd/metrics?run_id={RUN_ID}", "/opd/runs", STATUS, f"/opd/log?run_id={RUN_ID}", "/health"),
    *(STATUS, f"/opd/diagnose?run_id={RUN_ID}", "/opd/models", "/metrics", STATUS, "/openapi.json"),
)


@dataclass
class Server:
    """A running server."""

    home: HomePaths
    port: int
    pid: int
    token: str

    def resident_bytes(self) -> int:
        """Its resident memory; 0 where the system does not tell."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Calls:
    """What came of many calls: milliseconds of each, by path, and what went wrong."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, path: str, seconds: float) -> None:
        self.milliseconds.setdefault(path.partition("?")[0], []).append(1000 * seconds)

    @property
    def count(self) -> int:
        return sum(map(len, self.milliseconds.values()))

    def quantile(self, path: str, share: float) -> float:
        values = sorted(self.milliseconds.get(path, [])) or [float("nan")]
        return values[min(len(values) - 1, int(share * len(values)))]


class Client:
    """One keep-alive connection, read by hand so that the clients leave the processor to the server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
        """The status and the body."""
        if self._streams is None or self._streams[0].at_eof():  # the server closes what is idle
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._server.port, limit=2**22)
        reader, writer = self._streams
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._server.port}\r\n{kind}"
        writer.write(f"{head}Authorization: Bearer {self._server.token}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", answer)
        assert length is not None, answer
        return int(answer[9:12]), await reader.readexactly(int(length[1]))

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A server of a new home with one recorded run."""
    home = HomePaths(folder / "home")
    home.prepare()
    write_tiny_model(home.models / "tiny")
    prompts = [json.dumps({"prompt": f"Say number {number}."}) for number in range(60)]
    (home.home / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    record(home)
    environment = {"OPD_HOME": str(home.home), "HOME": str(folder), "PATH": os.environ["PATH"]}
    environment |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "1")}
    command = [sys.executable, "-m", "server.cli", "serve", "--http", "--port", "0"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    try:
        assert process.stderr is not None
        found = re.match(r"Serving on http://127\.0\.0\.1:(\d+); ", process.stderr.readline())
        assert found is not None, process.stderr.read()
        yield Server(home, int(found[1]), process.pid, (home.home / "token").read_text(encoding="ascii").strip())
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def record(home: HomePaths) -> None:
    """An ended run with a history."""
    store = RunStore(home.database)
    store.create(RUN_ID, "distillation", configuration(home), total_steps=300)
    epoch = store.claim(RUN_ID)
    store.transition(RUN_ID, "running", epoch=epoch)
    for step in range(1, 301):
        line = {"step": step, "kl_loss": 1 / step, "student_entropy": 1.5, "tokens_per_second": 100.0}
        store.append_metrics(RUN_ID, epoch, "train", line, step=step, latest_metrics=json.dumps(line))
    home.log(RUN_ID).write_text("a line of the log\n" * 500, encoding="utf-8")
    store.finish(RUN_ID, "completed", "finished", epoch=epoch, message="Done.")
    store.close()


def configuration(home: HomePaths, **changes: Any) -> dict[str, Any]:
    return {
        "base_model_path": "tiny",
        "validation_prompts_path": str(home.home / "prompts.jsonl"),
        "teacher_system_prompt": "Be brief.",
        "num_training_steps": 100_000,
        "batch_size": 4,
        "num_rollouts_per_prompt": 2,
        "rollout_max_tokens": 24,
        "eval_every_steps": 100_000,
        "checkpoint_every_steps": 100_000,
        "eval_max_samples": 8,
        "lora_rank": 4,
        "kl_schedule": "constant",
        **changes,
    }


async def drive(client: Client, paths: Sequence[str], until: float, calls: Calls, pause: float = 0.0) -> None:
    """Call one path after the other until a moment; with `pause`, one call in that many seconds."""
    number, due = 0, time.perf_counter()
    while time.perf_counter() < until:
        path, started = paths[number % len(paths)], time.perf_counter()
        number += 1
        try:
            status, body = await client.call(path)
        except (OSError, asyncio.IncompleteReadError) as error:
            calls.errors.append(f"{path}: {error!r}")
            client.close()
            continue
        calls.add(path, time.perf_counter() - started)
        if status != 200:
            calls.errors.append(f"{path}: {status} {body[:200]!r}")
        due += pause
        if pause:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def load(server: Server, seconds: float, calls_a_second: float = 0.0) -> Calls:
    """All clients for a time, each beginning at another of the mixed calls."""
    calls, clients, until = Calls(), [Client(server) for _ in range(CLIENTS)], time.perf_counter() + seconds
    pause = CLIENTS / calls_a_second if calls_a_second else 0.0

    async def one(number: int, client: Client) -> None:
        await asyncio.sleep(pause * number / CLIENTS)
        await drive(client, [*MIXED[number % len(MIXED) :], *MIXED[: number % len(MIXED)]], until, calls, pause)

    await asyncio.gather(*(one(number, client) for number, client in enumerate(clients)))
    for client in clients:
        client.close()
    return calls


async def floor(server: Server, calls: int) -> dict[str, Any]:
    """One client, one call after the other."""
    client, found = Client(server), Calls()
    for path in ("/health", STATUS):
        for number in range(calls + 30):
            started = time.perf_counter()
            status, body = await client.call(path)
            assert status == 200, body
            if number >= 30:
                found.add(path, time.perf_counter() - started)
    client.close()
    return {name: figures(found, path) for name, path in (("health", "/health"), ("get_status", "/opd/status"))}


def figures(calls: Calls, path: str) -> dict[str, float]:
    return {f"p{share}": calls.quantile(path, share / 100) for share in (50, 95, 99)}


async def full(server: Server, seconds: float) -> dict[str, Any]:
    """Full speed; memory is compared between a third of the time, when all is warm, and the end."""
    first = await load(server, seconds / 3)
    warm = server.resident_bytes()
    rest = await load(server, seconds * 2 / 3)
    return {
        "calls": first.count + rest.count,
        "calls_a_second": (first.count + rest.count) / seconds,
        "errors": len(first.errors) + len(rest.errors),
        "first_errors": [*first.errors, *rest.errors][:3],
        "get_status": figures(rest, "/opd/status"),
        "warm_bytes": warm,
        "grown_bytes": server.resident_bytes() - warm,
    }


async def training(server: Server, seconds: float) -> dict[str, Any]:
    """A run beside the load: windows with and without it, in turns."""
    client, store = Client(server), RunStore(server.home.database)
    status, body = await client.call("/opd/start", "POST", json.dumps(configuration(server.home)).encode())
    assert status == 200, body
    run_id = json.loads(body)["run_id"]
    try:
        return await measure_beside(server, store, run_id, seconds)
    finally:
        stop = json.dumps({"run_id": run_id, "timeout_seconds": 30}).encode()
        status, body = await client.call("/opd/stop", "POST", stop)
        client.close()


async def measure_beside(server: Server, store: RunStore, run_id: str, seconds: float) -> dict[str, Any]:
    """The windows; the run goes on afterwards."""
    while store.get(run_id).step < 20:
        assert store.get(run_id).state in ("queued", "preparing", "running"), store.get(run_id)
        await asyncio.sleep(0.2)
    window, speeds, calls = max(3.0, seconds / 6), {"alone": list[float](), "loaded": list[float]()}, Calls()
    for turn in range(6):
        name = ("alone", "loaded")[turn % 2]
        before, started = store.get(run_id).step, time.perf_counter()
        if name == "loaded":
            found = await load(server, window, CALLS_A_SECOND)
            calls.errors += found.errors
            for path, values in found.milliseconds.items():
                calls.milliseconds.setdefault(path, []).extend(values)
        else:
            await asyncio.sleep(window)
        speeds[name].append((store.get(run_id).step - before) / (time.perf_counter() - started))
    median = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "calls": calls.count,
        "errors": len(calls.errors),
        "first_errors": calls.errors[:3],
        "get_status": figures(calls, "/opd/status"),
        "steps_a_second": median,
        "all_steps_a_second": speeds,
        "speed_kept": median["loaded"] / median["alone"],
    }


WRITER = """
import sys
from pathlib import Path
from opd_core.state.store import RunStore
store = RunStore(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    store.add_event(sys.argv[2], "warning", f"{number} " + "w" * 1000)
store.add_event(sys.argv[2], "warning", "the end")
"""


async def readers(server: Server) -> dict[str, Any]:
    """Forty readers that read and ten that do not, while another process writes as fast as it can."""
    before = server.resident_bytes()
    stalled = [stalled_reader(server) for _ in range(STALLED)]
    joined = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(reader(server, joined)) for _ in range(READERS - STALLED)]
    for _ in tasks:
        await joined.acquire()
    client = Client(server)
    started, calls = time.perf_counter(), Calls()
    command = [sys.executable, "-c", WRITER, str(server.home.database), RUN_ID, str(FLOOD_EVENTS)]
    writer = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    watch = asyncio.create_task(drive(Client(server), [STATUS], float("inf"), calls, 0.1))
    received = await asyncio.wait_for(asyncio.gather(*tasks), 300)
    taken = time.perf_counter() - started
    assert await asyncio.to_thread(writer.wait) == 0
    deadline = time.perf_counter() + DROP_SECONDS
    while (left := await live_readers(client)) and time.perf_counter() < deadline:
        await asyncio.sleep(0.5)
    watch.cancel()
    whole = sum(numbers == list(range(FLOOD_EVENTS)) for numbers in received)
    for end in stalled:
        end.close()
    return {
        "messages": FLOOD_EVENTS * (READERS - STALLED),
        "seconds": taken,
        "readers_that_got_everything": whole,
        "stalled_dropped": STALLED - left,
        "drop_seconds": time.perf_counter() - started,
        "get_status": figures(calls, "/opd/status"),
        "errors": len(calls.errors),
        "grown_bytes": server.resident_bytes() - before,
    }


async def reader(server: Server, joined: asyncio.Semaphore) -> list[int]:
    """The numbers of the flood, as they came; frames are taken apart by hand, as cheaply as can be."""
    streams = await asyncio.open_connection("127.0.0.1", server.port, limit=2**18)
    streams[1].write(handshake(server, f"run_id={RUN_ID}"))
    assert (await streams[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    joined.release()  # accepted: from here on it misses nothing
    numbers, waiting = list[int](), b""
    while block := await streams[0].read(2**18):
        waiting += block
        frames, waiting = taken_apart(waiting)
        for frame in frames:
            if b'"kind":"warning"' in frame:
                told = frame[frame.index(b'"message":"') + 11 :]
                if told.startswith(b"the end"):
                    streams[1].close()
                    return numbers
                numbers.append(int(told[: told.index(b" ")]))
    return numbers  # closed by the server


def taken_apart(data: bytes) -> tuple[list[bytes], bytes]:
    """The payloads of the whole frames in `data`, and the rest; a server's frames have no mask."""
    frames, at = [], 0
    while len(data) >= at + 4:
        size, begin = data[at + 1], at + 2
        if size == 126:
            size, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        if len(data) < begin + size:
            break
        frames.append(data[begin : begin + size])
        at = begin + size
    return frames, data[at:]


def handshake(server: Server, query: str) -> bytes:
    return (
        f"GET /opd/ws?{query} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {server.token}\r\n\r\n"
    ).encode()


def stalled_reader(server: Server) -> socket.socket:
    """A socket that asks for the feed and never reads."""
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    end.connect(("127.0.0.1", server.port))
    end.sendall(handshake(server, "after=0"))
    return end


async def live_readers(client: Client) -> int:
    _, body = await client.call("/metrics")
    found = re.search(rb"^opd_live_readers (\d+)$", body, re.MULTILINE)
    assert found is not None, body
    return int(found[1])


def broken_promises(found: dict[str, Any]) -> list[str]:
    """What was promised and did not hold."""
    full, beside, live = found["full"], found["training"], found["readers"]
    checks = {
        f"errors at full speed: {full['errors']} {full['first_errors']}": full["errors"] == 0,
        f"memory grew by {full['grown_bytes'] / 1e6:.1f} MB": full["grown_bytes"] <= ALLOWED_GROWTH_BYTES,
        f"errors beside training: {beside['errors']} {beside['first_errors']}": beside["errors"] == 0,
        f"get_status p99 {beside['get_status']['p99']:.0f} ms beside training": (
            beside["get_status"]["p99"] < PROMISED_P99_MILLISECONDS
        ),
        f"training kept {beside['speed_kept']:.0%} of its speed": beside["speed_kept"] > PROMISED_SPEED,
        "readers missed messages": live["readers_that_got_everything"] == READERS - STALLED,
        "stalled readers were not dropped": live["stalled_dropped"] == STALLED,
        f"errors beside the readers: {live['errors']}": live["errors"] == 0,
    }
    return [told for told, holds in checks.items() if not holds]


def show(found: dict[str, Any]) -> None:
    print(f"{'milliseconds':42}{'p50':>9}{'p95':>9}{'p99':>9}")
    for told, values in (
        ("one client, /health (floor)", found["floor"]["health"]),
        ("one client, get_status", found["floor"]["get_status"]),
        (f"{CLIENTS} clients at full speed, get_status", found["full"]["get_status"]),
        (f"{CALLS_A_SECOND:g} calls/s beside training, get_status", found["training"]["get_status"]),
        (f"beside {READERS} readers of a flood, get_status", found["readers"]["get_status"]),
    ):
        print(f"{told:42}{values['p50']:9.2f}{values['p95']:9.2f}{values['p99']:9.2f}")
    full, beside, live = found["full"], found["training"], found["readers"]
    print(
        f"full speed: {full['calls']} calls, {full['calls_a_second']:.0f} a second, {full['errors']} errors, memory "
        f"{full['warm_bytes'] / 1e6:.0f} MB {full['grown_bytes'] / 1e6:+.1f} MB"
    )
    speed = beside["steps_a_second"]
    print(
        f"training: {speed['alone']:.2f} steps/s alone, {speed['loaded']:.2f} beside {CALLS_A_SECOND:g} calls/s "
        f"({beside['speed_kept']:.1%}), {beside['errors']} errors"
    )
    print(
        f"readers: {live['readers_that_got_everything']} of {READERS - STALLED} got all {FLOOD_EVENTS} messages in "
        f"{live['seconds']:.1f} s, {live['stalled_dropped']} of {STALLED} stalled ones dropped after "
        f"{live['drop_seconds']:.0f} s, memory {live['grown_bytes'] / 1e6:+.1f} MB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the two timed parts (default: 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    found: dict[str, Any] = {"seconds": options.seconds}
    with tempfile.TemporaryDirectory(prefix="opd_load_") as folder, served(Path(folder)) as server:
        found["floor"] = asyncio.run(floor(server, 300))
        found["full"] = asyncio.run(full(server, options.seconds))
        found["training"] = asyncio.run(training(server, options.seconds))
        found["readers"] = asyncio.run(readers(server))
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    broken = broken_promises(found)
    for told in broken:
        print(f"Broken promise: {told}.", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
