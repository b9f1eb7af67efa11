"""Every way a path can lie, through the real use cases: one clear refusal, nothing written, nothing hangs (S9, S10)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from opd_core.errors import OPDError
from opd_core.state.store import RunStore
from server.arguments.parsing import parse_arguments
from server.home_use_cases import HomeUseCases
from server.settings import read_settings
from server.verbs import VERBS, UnexpectedError, Verbs
from server.web.app import http_app
from tests.model_folders import World, make_adapter, make_model, write_prompts
from tests.server.asgi import HOST, JSON_TYPE, TOKEN, fetch, head

Make = Callable[[World, Path], str]
"""Puts something in place and gives the path that names it; the second argument is a folder outside the home."""


def link(target: str | Path, name: str) -> Make:
    def make(world: World, outside: Path) -> str:
        path = world.home.home / name
        path.symlink_to(outside / target)
        return str(path)

    return make


def hard_link(world: World, outside: Path) -> str:
    path = world.home.home / "hard.jsonl"
    path.hardlink_to(outside / "secret.jsonl")
    return str(path)


def through_folder(world: World, outside: Path) -> str:
    (world.home.home / "way").symlink_to(outside)
    return str(world.home.home / "way" / "secret.jsonl")


def fifo(world: World, outside: Path) -> str:
    os.mkfifo(world.home.home / "fifo.jsonl")
    return str(world.home.home / "fifo.jsonl")


def unix_socket(world: World, outside: Path) -> str:
    here = Path.cwd()
    os.chdir(world.home.home)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket.jsonl")
    finally:
        os.chdir(here)
    return str(world.home.home / "socket.jsonl")


def circle(world: World, outside: Path) -> str:
    path = world.home.home / "circle.jsonl"
    path.symlink_to(path)
    return str(path)


def text(template: str) -> Make:
    return lambda world, outside: template.format(home=world.home.home, outside=outside)


FILES: dict[str, Make] = {
    "outside": text("{outside}/secret.jsonl"),
    "sibling of the same beginning": text("{home}-evil/secret.jsonl"),
    "dots": text("{home}/../outside/secret.jsonl"),
    "dots behind a folder": text("{home}/models/../../outside/secret.jsonl"),
    "link out": link("secret.jsonl", "link.jsonl"),
    "folder link out": through_folder,
    "link to a device": link("/dev/zero", "zero.jsonl"),
    "circle of links": circle,
    "fifo": fifo,
    "socket": unix_socket,
    "device": text("/dev/zero"),
    "standard input": text("/dev/stdin"),
    "process": text("/proc/self/environ"),
    "process file": text("/proc/self/fd/0"),
    "hard link": hard_link,
    "nul": text("{home}/prompts.jsonl\0.jsonl"),
    "escape": text("{home}/\x1b[2Jprompts.jsonl"),
    "newline": text("{home}/prompts.jsonl\n"),
    "half a surrogate": text("{home}/\udc80.jsonl"),
    "5,000 characters": text("/" + "x" * 5_000 + ".jsonl"),
    "5,000 characters inside": text("{home}/" + "x" * 5_000 + ".jsonl"),
    "2,500 folders inside": text("{home}/" + "x/" * 2_500 + "y.jsonl"),
    "home": text("~"),
    "home of another": text("~nobody-of-this-name/prompts.jsonl"),
    "inside the person's home": text("~/.ssh/id_rsa.txt"),
    "dash": text("-"),
    "option": text("--help"),
    "relative": text("prompts.jsonl"),
    "relative dots": text("../outside/secret.jsonl"),
    "address": text("file://{home}/prompts.jsonl"),
    "empty": text(""),
    "folder": text("{home}/models"),
    "missing": text("{home}/missing.jsonl"),
    "other extension": text("{home}/models/base/config.json"),
}


def in_model(change: Callable[[Path, Path], None]) -> Make:
    """A model folder in the home with one file of it changed."""

    def make(world: World, outside: Path) -> str:
        folder = make_model(world.home.home / "models" / "odd")
        change(folder, outside)
        return str(folder)

    return make


def config_is_a_fifo(folder: Path, outside: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def config_is_a_device(folder: Path, outside: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def weights_are_elsewhere(folder: Path, outside: Path) -> None:
    (folder / "model.safetensors").rename(outside / "model.safetensors")
    (folder / "model.safetensors").symlink_to(outside / "model.safetensors")


FOLDERS: dict[str, Make] = {
    "outside": text("{outside}/model"),
    "sibling of the same beginning": text("{home}-evil"),
    "dots": text("{home}/models/../../outside/model"),
    "link out": link("model", "link"),
    "fifo": fifo,
    "device": text("/dev"),
    "process": text("/proc/self/cwd"),
    "nul": text("{home}/models/base\0"),
    "5,000 characters": text("/" + "x" * 5_000),
    "home": text("~"),
    "dash": text("-"),
    "file": text("{home}/prompts.jsonl"),
    "config is a fifo": in_model(config_is_a_fifo),
    "config is a device": in_model(config_is_a_device),
    "weights are elsewhere": in_model(weights_are_elsewhere),
}
CASES = [
    *((field, name, make) for field in ("prompts_path", "validation_prompts_path") for name, make in FILES.items()),
    *((field, name, make) for field in ("base_model_path", "student_adapter_path") for name, make in FOLDERS.items()),
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for folder in ("outside", "home-evil"):
        (tmp_path / folder).mkdir()
        write_prompts(tmp_path / folder / "secret.jsonl", reference="TOPSECRET")
    make_model(tmp_path / "outside" / "model")
    return World(tmp_path)


def request(world: World, **changes: Any) -> dict[str, Any]:
    """A start that is accepted but for the changes."""
    return {
        "base_model_path": "base",
        "prompts_path": str(world.prompts),
        "teacher_system_prompt": "Answer in JSON.",
        "learning_rate": 1e-4,
        **changes,
    }


def tree(folder: Path) -> list[tuple[str, int, int]]:
    """Every file with its size and the time of its last change."""
    found = [(str(path), path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def refusal(world: World, verb: str, arguments: dict[str, Any], *, is_local: bool = False) -> OPDError:
    """The error of a verb, which changed nothing in the home."""
    cases = HomeUseCases(read_settings({"OPD_HOME": str(world.home.home)}), is_local=is_local)
    before = tree(world.home.home)

    async def go() -> OPDError:
        with anyio.fail_after(20), pytest.raises(OPDError) as caught:
            await Verbs(cases).call(verb, parse_arguments(VERBS[verb].arguments, arguments))
        return caught.value

    error = anyio.run(go)
    assert tree(world.home.home) == before, "a refused start leaves nothing behind"
    return error


@pytest.mark.parametrize(("field", "name", "make"), CASES, ids=[f"{field}: {name}" for field, name, _ in CASES])
@pytest.mark.parametrize("verb", ["start_distillation", "estimate_cost"])
def test_a_path_that_lies_is_refused_in_one_plain_sentence(
    world: World, field: str, name: str, make: Make, verb: str
) -> None:
    path = make(world, world.home.home.parent / "outside")
    error = refusal(world, verb, request(world, **{field: path}))
    said = str(error)
    assert not isinstance(error, UnexpectedError)
    assert field in said or path in said, "it is refused for its path"
    assert "TOPSECRET" not in said and "Traceback" not in said and "Errno" not in said
    assert said.isprintable() and len(said) < 1_500


@pytest.mark.parametrize("name", ["link out", "fifo", "hard link", "dots", "nul", "5,000 characters", "device"])
def test_over_http_the_same_refusal_is_a_422(world: World, name: str) -> None:
    path = FILES[name](world, world.home.home.parent / "outside")
    cases = HomeUseCases(read_settings({"OPD_HOME": str(world.home.home)}), is_local=False)
    app = http_app(cases, token=TOKEN, hosts=frozenset({HOST}), origins=frozenset())
    body = json.dumps(request(world, prompts_path=path)).encode()
    reply = fetch(app, head("/opd/start", "POST", [("host", HOST), JSON_TYPE]), [body])
    assert reply.status == 422
    detail = reply.problem["detail"]
    assert "prompts_path" in detail or path in detail
    assert "TOPSECRET" not in detail and detail.isprintable()


def test_the_persons_own_home_is_open_to_them_and_closed_over_http(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    outside = str(tmp_path / "outside" / "secret.jsonl")
    settings = read_settings({"OPD_HOME": str(world.home.home)})
    asked = parse_arguments(VERBS["estimate_cost"].arguments, request(world, prompts_path=outside))
    assert HomeUseCases(settings, is_local=True).estimate(asked).train_prompts > 0  # type: ignore[arg-type]
    assert "outside the folders" in str(refusal(world, "estimate_cost", request(world, prompts_path=outside)))


def test_links_that_stay_inside_and_shared_model_files_are_accepted(world: World) -> None:
    (world.home.home / "link.jsonl").symlink_to(world.prompts)
    shared = world.home.home / "models" / "shared"
    shared.mkdir()
    for file in (world.home.models / "base").iterdir():
        (shared / file.name).hardlink_to(file)
    linked = world.home.home / "models" / "linked"
    linked.mkdir()
    for file in (world.home.models / "base").iterdir():
        (linked / file.name).symlink_to(file)
    cases = HomeUseCases(read_settings({"OPD_HOME": str(world.home.home)}), is_local=False)
    for model in ("shared", "linked"):
        asked = request(world, prompts_path=str(world.home.home / "link.jsonl"), base_model_path=model)
        found = cases.estimate(parse_arguments(VERBS["estimate_cost"].arguments, asked))  # type: ignore[arg-type]
        assert found.train_prompts > 0


@pytest.mark.parametrize("field", ["checkpoint_dir", "rollout_output_dir", "val_rollout_dir"])
@pytest.mark.parametrize(
    "name", ["outside", "sibling of the same beginning", "dots", "link out", "nul", "home", "dash", "file"]
)
def test_outputs_stay_under_the_home(world: World, field: str, name: str) -> None:
    path = FOLDERS[name](world, world.home.home.parent / "outside")
    assert field in str(refusal(world, "start_distillation", request(world, **{field: path})))


@pytest.mark.parametrize(
    "run_id", ["../evil", "a/b", "..", ".", "", "a" * 65, "a\0", "a\n", "~", "a b", "ä", "$(id)", "a;b", "con.txt"]
)
def test_a_name_never_leaves_the_home(world: World, run_id: str) -> None:
    """Names become file names, so they are letters, digits, '_' and '-' (S10)."""
    said = str(refusal(world, "start_distillation", request(world, run_id=run_id)))
    assert "run_id" in said


def test_an_adapter_of_a_comparison_is_held_to_the_same_rule(world: World) -> None:
    make_adapter(world.home.home.parent / "outside" / "adapter")
    (world.home.home / "adapter").symlink_to(world.home.home.parent / "outside" / "adapter")
    cases = HomeUseCases(read_settings({"OPD_HOME": str(world.home.home)}), is_local=False)
    store = RunStore(cases.home.database)
    asked = parse_arguments(
        VERBS["estimate_cost"].arguments, request(world, run_id="opd_1", base_model_path=str(world.base))
    )
    store.create("opd_1", "distillation", asked.model_dump(mode="json"), total_steps=3)
    store.finish("opd_1", "completed", "finished", epoch=store.claim("opd_1"), message="done")
    store.close()
    for path in ("/etc", str(world.home.home / "adapter"), f"{world.home.home}/../outside/adapter"):
        arguments = {"run_id": "opd_1", "candidates": [{"name": "x", "adapter_path": path}]}
        model = parse_arguments(VERBS["compare_adapters"].arguments, arguments)
        with pytest.raises(OPDError, match="outside the folders"):
            cases.start_comparison(model)  # type: ignore[arg-type]
    assert [row.run_id for row in cases.list(None, None, 10, None)[0]] == ["opd_1"]
