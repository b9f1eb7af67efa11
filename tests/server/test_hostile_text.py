"""Texts of models and files that try to steer a terminal or an assistant, through every door (S15, row 41)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import MCPError
from mcp.client import Client
from mcp_types import CallToolResult
from starlette.testclient import TestClient

from opd_core.state.store import RunStore
from server.app import server_for
from server.home_use_cases import HomeUseCases
from server.routes import ROUTES
from server.verbs import VERBS
from server.web.app import http_app
from tests.server.asgi import HOST, TOKEN
from tests.server.fakes import ERAS, text_of
from tests.server.hostile_home import (
    HOSTILE,
    MARK,
    configuration,
    hostile_home,
    judge_answer,
    judge_error,
    judge_text,
    odd_characters,
)

RUNS = ("opd_1", "opd_2", "cmp_1", "prb_1")
# These start a worker when they are not refused.
ONLY_REFUSED = {"start_distillation", "resume_distillation"}


@pytest.fixture(scope="module", params=HOSTILE)
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeUseCases]:
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        yield hostile_home(folder, HOSTILE[request.param])


def asked(name: str, cases: HomeUseCases) -> list[dict[str, Any]]:
    """Ways to ask a verb for whatever it may tell of this home; a new verb is asked by its fields."""
    home, fields = cases.home, set(VERBS[name].arguments.model_fields)
    if name in ("estimate_cost", "start_distillation"):
        files = [str(home.home / f"{file}.jsonl") for file in ("bad", "twice", "raw")]
        adapters = {name: str(home.home / "checkpoints" / name) for name in ("kind", "tensors", "layers", "opd_1")}
        sound: list[dict[str, Any]] = [
            {},
            {"base_model_path": "odd"},
            {"student_adapter_path": adapters.pop("opd_1"), "lora_rank": None},
        ]
        refused: list[dict[str, Any]] = [
            *({"prompts_path": file} for file in files),
            *({"base_model_path": model} for model in ("typed", "no such model")),
            *({"student_adapter_path": adapters[each], "lora_rank": None} for each in ("kind", "tensors", "layers")),
            {"teacher_model_id": "other", "teacher_system_prompt": None},
            {"lora_keys": ["none"]},
        ]
        changes = [*sound, *refused] if name == "estimate_cost" else refused
        return [configuration(home, **change) for change in changes]
    if name == "inspect_prompts":
        names = [str(home.home / f"{file}.jsonl") for file in ("good", "bad", "twice", "raw")]
        return [{"prompts_path": names[0], "base_model_path": "base"}, *({"prompts_path": each} for each in names)]
    if name == "resume_distillation":
        return [{"run_id": run_id} for run_id in ("opd_1", "cmp_1", "nothing")]
    wait = {"timeout_seconds": 0} if "timeout_seconds" in fields else {}
    if "job_id" in fields:
        return [{"job_id": job_id, **wait} for job_id in ("cmp_1", "prb_1", "opd_1")]
    if "run_ids" in fields:
        return [{"run_ids": [run_id]} for run_id in RUNS]
    if "run_id" in fields:
        modes: list[dict[str, Any]] = (
            [{"mode": "grep", "pattern": ".", "regex": True}, {"mode": "tail"}] if "mode" in fields else []
        )
        return [{"run_id": run_id, **wait, **mode} for run_id in RUNS for mode in ({}, *modes)]
    return [{}]


def judge_result(result: CallToolResult, where: str) -> None:
    text = text_of(result)
    assert len(result.model_dump_json(by_alias=True).encode()) < 20_000 or "image" in {b.type for b in result.content}
    if result.is_error:
        judge_error(text, where)
        return
    judge_text(text, where)
    if result.structured_content is not None:
        judge_answer(result.structured_content, where)
        assert text.split("\n")[-1].startswith("Next: ")
        said = [line for line in text.split("\n")[:-1] if line.startswith("Next:")]
        assert not said, f"{where}: a second next step: {said}"


@pytest.mark.parametrize("name", VERBS)
def test_no_tool_speaks_with_a_hostile_voice(cases: HomeUseCases, name: str) -> None:
    async def go() -> int:
        sound = 0
        with anyio.fail_after(120):
            async with Client(server_for(cases), mode="legacy") as client:
                for arguments in asked(name, cases):
                    result = await client.call_tool(name, arguments)
                    judge_result(result, f"{name} {arguments}")
                    sound += not result.is_error
        return sound

    sound = anyio.run(go)
    assert bool(sound) != (name in ONLY_REFUSED), "say in `asked` how this verb is asked for something"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_no_route_speaks_with_a_hostile_voice(cases: HomeUseCases, route: Any) -> None:
    app = http_app(cases, token=TOKEN, hosts=frozenset({HOST}), origins=frozenset())
    with TestClient(app, base_url=f"http://{HOST}", headers={"authorization": f"Bearer {TOKEN}"}) as client:
        for arguments in asked(route.verb, cases):
            if route.method == "POST":
                response = client.post(route.path, json=arguments)
            else:
                plain = {key: ",".join(value) if isinstance(value, list) else value for key, value in arguments.items()}
                response = client.get(route.path, params=plain)
            where = f"{route.path} {arguments}"
            assert response.status_code < 500, f"{where}: {response.text}"
            assert len(response.content) < 20_000 or "png_base64" in response.json()
            judge_answer(response.json(), where)


@pytest.mark.parametrize("era", ERAS)
def test_no_resource_and_no_prompt_speaks_with_a_hostile_voice(cases: HomeUseCases, era: Any) -> None:
    async def go() -> None:
        with anyio.fail_after(120):
            async with Client(server_for(cases), mode=era) as client:
                found = await client.list_resources()
                templates = await client.list_resource_templates()
                judge_answer(json.loads(found.model_dump_json()), "resources/list")
                judge_answer(json.loads(templates.model_dump_json()), "resources/templates/list")
                uris = {str(resource.uri) for resource in found.resources}
                for template in templates.resource_templates:
                    uris |= {template.uri_template.replace("{run_id}", run_id) for run_id in RUNS}
                for uri in sorted(uris):
                    await read(client, uri)
                for prompt in (await client.list_prompts()).prompts:
                    arguments = {argument.name: "opd_1" for argument in prompt.arguments or ()}
                    try:
                        got = await client.get_prompt(prompt.name, arguments)
                    except MCPError as error:
                        judge_error(str(error), prompt.name)
                        continue
                    for message in got.messages:
                        text = getattr(message.content, "text", "")
                        assert not odd_characters(text) and MARK not in text, f"{prompt.name} says {text!r}"

    async def read(client: Client, uri: str) -> None:
        try:
            result = await client.read_resource(uri)
        except MCPError as error:
            judge_error(str(error), uri)
            return
        for content in result.contents:
            text = getattr(content, "text", "")
            if (content.mime_type or "").endswith("json"):
                judge_answer(json.loads(text), uri)
                assert len(text.encode()) <= 20_000, uri
            else:
                judge_text(text, uri)

    anyio.run(go)


def test_a_written_report_holds_no_live_markup_and_no_control_characters(cases: HomeUseCases) -> None:
    written = cases.export_report(cases.evidence("opd_1"))
    pages = [Path(value) for value in vars(written).values() if isinstance(value, str | Path) and Path(value).is_file()]
    pages += [value.path for value in vars(written).values() if hasattr(value, "path")]
    assert len(pages) >= 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not odd_characters(text), f"{page.name}: {odd_characters(text)}"
        assert len(text) < 500_000
        if page.suffix == ".html":
            for live in (f"<script>{MARK}", f"<system>{MARK}", "</tool>", "http://evil.example"):
                assert live not in text or live == "http://evil.example"
            assert 'src="http' not in text and 'href="http' not in text


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/docs", "/metrics"])
def test_pages_that_are_no_verb_repeat_nothing_of_a_home(cases: HomeUseCases, path: str) -> None:
    app = http_app(cases, token=TOKEN, hosts=frozenset({HOST}), origins=frozenset())
    with TestClient(app, base_url=f"http://{HOST}", headers={"authorization": f"Bearer {TOKEN}"}) as client:
        response = client.get(path)
    assert response.status_code == 200 or path == "/metrics"
    assert MARK not in response.text and not odd_characters(response.text)


def test_the_socket_tells_what_happened_without_a_hostile_voice(cases: HomeUseCases) -> None:
    store = RunStore(cases.home.database)
    kept = len(store.events(None, 1_000))
    store.close()
    app = http_app(cases, token=TOKEN, hosts=frozenset({HOST}), origins=frozenset())
    protocols = ["opd", f"opd.token.{TOKEN}"]
    with (
        TestClient(app, base_url=f"http://{HOST}") as client,
        client.websocket_connect("/opd/ws?after=0", subprotocols=protocols, headers={"host": HOST}) as socket,
    ):
        assert socket.accepted_subprotocol == "opd"
        messages = [socket.receive_json() for _ in range(kept)]
    for message in messages:
        judge_answer(message, "/opd/ws")
    assert {"opd_1", "opd_2"} <= {message["data"]["run_id"] for message in messages}


def test_hostile_text_would_be_noticed(tmp_path: Path) -> None:
    """The judges judge: what comes out of the house unchanged is caught by each of them."""
    for name, text in HOSTILE.items():
        with pytest.raises(AssertionError):
            judge_answer({"summary": text}, name)
        with pytest.raises(AssertionError):
            judge_error(text, name)
    for name in ("terminal", "bidi", "invisible", "line ends", "half a surrogate", "nul", "a megabyte"):
        with pytest.raises(AssertionError):
            judge_answer({"samples": [{"prompt": HOSTILE[name]}]}, name)
    with pytest.raises(AssertionError):
        judge_text("- model x\nNext: " + MARK, "a line")
    judge_text(f"- sample (data): {MARK}\n```text\nNext: {MARK}\n```", "marked")
