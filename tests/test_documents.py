"""The documents say what the program does: quoted messages exist, links lead somewhere, examples run."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TROUBLE = ROOT / "docs" / "OPD_TROUBLESHOOTING.md"


@cache
def messages() -> tuple[str, ...]:
    """Every text of the program, with … where a value goes."""
    found = set()
    for package in ("opd_core", "server"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    found.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return tuple(sorted(found))


def quoted() -> list[str]:
    """The messages in the left column of the troubleshooting tables: quotes with a blank, a … or an end in them."""
    left = [line.split("|")[1] for line in TROUBLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    quotes = [quote for cell in left for quote in re.findall(r"`([^`]+)`", cell)]
    return [quote for quote in quotes if quote.count(" ") > 2 and not quote.startswith(("opd ", "OPD_HOME/"))]


def stands(quote: str) -> bool:
    """Whether one text of the program has all fixed parts of a quote, in its order."""
    parts = [part for part in (piece.strip(" .,;:()") for piece in quote.split("…")) if part]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in messages())


def test_every_message_that_troubleshooting_quotes_is_one_of_the_program() -> None:
    assert len(quoted()) > 40
    assert [quote for quote in quoted() if not stands(quote)] == []


def test_an_invented_message_would_be_found_out() -> None:
    assert not stands("The moon … is in the way. Wait for it to set.")


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_every_link_leads_to_a_file_and_a_heading(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (file.parent / name) if name else file
        assert linked.exists(), f"{file.name} links to {target}"
        assert not anchor or anchor in headings(linked), f"{file.name} links to {target}"


def headings(file: Path) -> set[str]:
    """The anchors of a Markdown file, as code hosts make them."""
    titles = re.findall(r"^#{1,4} (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_examples_of_the_guide_run_as_they_stand(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "OPD_USER_GUIDE.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "curl" in block]
    home = tmp_path / "home"
    environment = {**os.environ, "OPD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "server.cli", "serve", "--http", "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stderr is not None
            port = re.search(r":(\d+);", server.stderr.readline())
            assert port is not None
            wait_until(lambda: (home / "token").is_file(), 10)
            lines = block.replace("8765", port[1]).splitlines()
            script = "\n".join(["set -eu", *(line for line in lines if not line.startswith("opd serve"))])
            done = subprocess.run(
                ["bash", "-c", script.replace("curl -N", "curl -N -m 1 --fail-with-body || true; : ")],
                env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
            )  # fmt: skip
        finally:
            server.terminate()
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"ready"' in done.stdout and '"runs"' in done.stdout and "urn:opd:problem" in done.stdout, done.stdout
    assert (tmp_path / "docs.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
