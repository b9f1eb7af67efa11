"""A local server that speaks the Messages API and Message Batches over a real socket and keeps a bill of its own.

Each request is answered by the next entry of `script`, else by `answer`. The bill knows nothing of the code under
test: its prices stand here, it charges when the work is done (before the reply is sent, so whoever hangs up pays), and
charges nothing for an error status unless the entry says so.

    with Endpoint() as endpoint:
        endpoint.script.append(error(529, "overloaded_error"))
        ... base_url=endpoint.url ...
        assert endpoint.billed_pico == 0
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

PRICES = {
    # picodollars a token: input, five-minute cache write, cache read, output ($1 a million is 10**6)
    "claude-sonnet-5-5": (2_000_000, 2_500_000, 100_000, 10_000_000),
    "claude-opus-5-5": (4_000_000, 5_000_000, 200_000, 20_000_000),
    "claude-haiku-5-5": (100_000, 125_000, 10_000, 500_000),
}

JsonObject = dict[str, Any]
Answer = Callable[[JsonObject], "Reply | str | JsonObject"]


@dataclass(frozen=True)
class Reply:
    """What one request gets.

    Attributes:
        text: of the message's only text block.
        message: overrides keys of the message; a value of `...` removes the key.
        usage: overrides keys of the usage; `...` removes one.
        raw: the exact body instead of a message.
        cut: send only so many bytes of the body, then close.
        drop: close without a word.
        hold: wait for this event after the work is done and before anything is sent.
        arrived: set when the request has been read.
        bill: charge it; None: charge a status 200 only.
    """

    text: str = "{}"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    cut: int | None = None
    drop: bool = False
    hold: threading.Event | None = None
    arrived: threading.Event | None = None
    bill: bool | None = None


def error(
    status: int,
    kind: str = "api_error",
    message: str = "no",
    *,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    bill: bool | None = None,
) -> Reply:
    """An error in the provider's form."""
    body: JsonObject = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_error"}
    if code is not None:
        body["error"]["details"] = {"error_code": code}
    return Reply(status=status, headers=headers or {}, raw=json.dumps(body).encode(), bill=bill)


def request_data(params: JsonObject) -> JsonObject:
    """The JSON object that our templates put between <data> and </data>."""
    content = params["messages"][-1]["content"]
    text = content if isinstance(content, str) else "".join(block["text"] for block in content)
    found: JsonObject = json.loads(text.removeprefix("<data>\n").removesuffix("\n</data>"))
    return found


def request_kind(params: JsonObject) -> str:
    """Which of our requests it is, by the keys of its schema: reference, guidance, lesson or judge."""
    keys = set(params["output_config"]["format"]["schema"]["properties"])
    if "preferred" in keys:
        return "judge"
    return "guidance" if "verdict" in keys else keys.pop()


def obliging(params: JsonObject) -> JsonObject:
    """A fitting reply to any of our requests."""
    replies: dict[str, JsonObject] = {
        "reference": {"reference": f"A fine answer to {json.dumps(request_data(params))[:40]}"},
        "guidance": {
            "critique": "The first word is wrong; it should be Yes.",
            "verdict": "repairable",
            "score": 4,
            "minimal_edit": "Yes.",
            "lesson": "Answer with one word.",
        },
        "lesson": {"lesson": "Answer with one word."},
        "judge": {"reason": "It is right.", "preferred": "a"},
    }
    return replies[request_kind(params)]


class Endpoint:
    """The server; a context manager. All attributes may be read and written while it runs."""

    def __init__(self, answer: Answer = obliging, *, batch_polls: int = 1) -> None:
        self.script: deque[Reply | str | JsonObject] = deque()
        self.batch_script: deque[Reply] = deque()  # for POST /v1/messages/batches only
        self.model_script: deque[Reply] = deque()  # for GET /v1/models/… only; a model without a price is unknown
        self.look: Callable[[str], Reply | None] = lambda path: None  # what a GET gets instead of what is there
        self.batch_results: dict[str, JsonObject] = {}  # by the request's position in its batch: "0", "1", …
        self.answer = answer
        self.archived: set[str] = set()  # batches whose results are gone
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)  # when a batch is created
        self.batch_polls = batch_polls  # how often a batch says in_progress before it has ended
        self.requests: list[tuple[str, str, dict[str, str], JsonObject]] = []
        self.billed_pico = 0
        self.bill: list[tuple[str, int]] = []  # message id and picodollars
        self.batches: dict[str, JsonObject] = {}
        self.lock = threading.Lock()
        self._serial = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.endpoint = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def calls(self) -> list[JsonObject]:
        """The bodies of all POST /v1/messages so far."""
        return [body for method, path, _, body in list(self.requests) if (method, path) == ("POST", "/v1/messages")]

    @property
    def submissions(self) -> list[JsonObject]:
        """The bodies of all batches that were sent."""
        return [body for method, path, _, body in list(self.requests) if (method, path[-8:]) == ("POST", "/batches")]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serial(self) -> int:
        with self.lock:
            self._serial += 1
            return self._serial

    def next_reply(self, params: JsonObject) -> Reply:
        """The scripted reply, or the default one."""
        with self.lock:
            planned = self.script.popleft() if self.script else None
        if planned is None:
            planned = self.answer(params)
        if isinstance(planned, Reply):
            return planned
        return Reply(text=planned if isinstance(planned, str) else json.dumps(planned))

    def message(self, params: JsonObject, reply: Reply, *, batch: bool = False) -> JsonObject:
        """The message of a reply, and its charge on the bill."""
        size = len(json.dumps(params))
        usage: JsonObject = {
            "input_tokens": size // 4 + 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": len(reply.text) // 4 + 1,
            "service_tier": "batch" if batch else "standard",
            "inference_geo": "global",
        }
        message: JsonObject = {
            "id": f"msg_{self.serial():06d}",
            "type": "message",
            "role": "assistant",
            "model": params["model"],
            "content": [{"type": "text", "text": reply.text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
        }
        message = _overridden(message, reply.message)
        if reply.bill is not False:
            true_usage = {name: value for name, value in usage.items() if name.endswith("tokens")}
            given = {name: value for name, value in reply.usage.items() if type(value) is int and value >= 0}
            self._charge(message, params, {**true_usage, **given}, batch)
        if "usage" not in reply.message:
            message["usage"] = _overridden(usage, reply.usage)
        return message

    def _charge(self, message: JsonObject, params: JsonObject, usage: JsonObject, batch: bool) -> None:
        model = str(message.get("model", params["model"]))
        prices = PRICES.get(model) or PRICES.get(model[:-9]) or PRICES[params["model"]]
        counts = (
            usage["input_tokens"],
            usage["cache_creation_input_tokens"],
            usage["cache_read_input_tokens"],
            usage["output_tokens"],
        )
        pico = sum(price * count for price, count in zip(prices, counts, strict=True))
        pico = -(-pico // 2) if batch else pico
        with self.lock:
            self.billed_pico += pico
            self.bill.append((str(message.get("id")), pico))

    def create_batch(self, body: JsonObject) -> JsonObject:
        now = self.now()
        batch_id = f"msgbatch_{self.serial():06d}"
        with self.lock:
            self.batches[batch_id] = {"requests": body["requests"], "created": now, "polls": 0, "lines": None}
        return self.batch_view(batch_id)

    def batch_view(self, batch_id: str, *, poll: bool = False) -> JsonObject:
        batch = self.batches[batch_id]
        if poll:
            batch["polls"] += 1
            if batch["polls"] > self.batch_polls and batch["lines"] is None:
                batch["lines"] = self._work_off(batch["requests"])
        ended = batch["lines"] is not None
        counts = dict.fromkeys(("canceled", "errored", "expired", "processing", "succeeded"), 0)
        for line in batch["lines"] or ():
            kind = line["result"].get("type")
            counts[kind if kind in counts else "errored"] += 1
        counts["processing"] = 0 if ended else len(batch["requests"])
        created = batch["created"]
        return {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": created.isoformat(),
            "expires_at": (created + timedelta(days=1)).isoformat(),
            "ended_at": created.isoformat() if ended else None,
            "results_url": f"{self.url}/v1/messages/batches/{batch_id}/results" if ended else None,
        }

    def batch_page(self, query: dict[str, list[str]]) -> JsonObject:
        """The newest first; after `after_id` the next older ones."""
        with self.lock:
            names = sorted(self.batches, key=lambda name: self.batches[name]["created"])[::-1]
        start = names.index(query["after_id"][0]) + 1 if "after_id" in query else 0
        page = names[start : start + int(query.get("limit", ["20"])[0])]
        return {
            "data": [self.batch_view(name) for name in page],
            "has_more": start + len(page) < len(names),
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    def _work_off(self, requests: list[JsonObject]) -> list[JsonObject]:
        lines = []
        for position, request in enumerate(requests):
            result = self.batch_results.get(str(position))
            if result is None:
                reply = self.next_reply(request["params"])
                result = {"type": "succeeded", "message": self.message(request["params"], reply, batch=True)}
            lines.append({"custom_id": request["custom_id"], "result": result})
        return lines[::-1]  # the order is not promised


def _overridden(values: JsonObject, changes: Mapping[str, Any]) -> JsonObject:
    return {name: value for name, value in {**values, **changes}.items() if value is not ...}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    endpoint: Endpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        endpoint = self._note("POST", body)
        if self.path == "/v1/messages":
            reply = endpoint.next_reply(body)
            if reply.arrived is not None:
                reply.arrived.set()
            billed = reply.status == 200 if reply.bill is None else reply.bill
            message = endpoint.message(body, replace(reply, bill=billed))
            self._send(reply, message)
        elif self.path == "/v1/messages/batches":
            planned = endpoint.batch_script.popleft() if endpoint.batch_script else Reply()
            self._send(planned, endpoint.create_batch(body) if planned.bill is not False else {})
        else:
            self._send(error(404, "not_found_error"), {})

    def do_GET(self) -> None:
        endpoint = self._note("GET", {})
        path = self.path.split("?")[0].strip("/").split("/")
        planned = endpoint.look(self.path)
        if planned is not None:
            self._send(planned, {})
        elif path[:3] == ["v1", "messages", "batches"] and len(path) == 3:
            self._send(Reply(), endpoint.batch_page(parse_qs(urlsplit(self.path).query)))
        elif path[:3] == ["v1", "messages", "batches"] and path[3] in endpoint.batches.keys() - endpoint.archived:
            if len(path) == 4:
                self._send(Reply(), endpoint.batch_view(path[3], poll=True))
            else:
                lines = "".join(
                    f"{json.dumps(line, ensure_ascii=False)}\n" for line in endpoint.batches[path[3]]["lines"]
                )
                self._send(Reply(raw=lines.encode()), {})
        elif path[:2] == ["v1", "models"] and endpoint.model_script:
            self._send(endpoint.model_script.popleft(), {})
        elif path[:2] == ["v1", "models"] and (path[2] in PRICES or path[2][:-9] in PRICES):
            model = {"type": "model", "id": path[2], "display_name": path[2], "created_at": "2026-09-28T00:00:00Z"}
            self._send(Reply(), model)
        else:
            self._send(error(404, "not_found_error", f"no {self.path}"), {})

    def _note(self, method: str, body: JsonObject) -> Endpoint:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.endpoint.requests.append((method, self.path, headers, body))
        return self.server.endpoint

    def _send(self, reply: Reply, message: JsonObject) -> None:
        if reply.hold is not None:
            reply.hold.wait(30)
        if reply.drop:
            self.close_connection = True
            return
        body = json.dumps(message).encode() if reply.raw is None else reply.raw
        self.send_response(reply.status)
        for name, value in {"content-type": "application/json", "request-id": "req_1", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: reply.cut])
        if reply.cut is not None:
            self.close_connection = True
