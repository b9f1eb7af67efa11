"""Hashes of what a run was made of, and what they tell."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from opd_core.control.report.provenance import hash_file
from opd_core.paths import HomePaths
from tests.opd_core.control.report.pages import Page, written
from tests.opd_core.control.runs_seen import seen


def test_provenance_has_hashes_and_says_when_the_adapter_is_not_the_checkpoints(
    home: HomePaths, tmp_path: Path
) -> None:
    adapter, step = home.checkpoints("opd_1"), home.checkpoints("opd_1") / "step_000030"
    step.mkdir(parents=True)
    (adapter / "adapters.safetensors").write_bytes(b"weights")
    (adapter / "adapter_config.json").write_text("{}")
    digest = hashlib.sha256(b"weights").hexdigest()
    manifest = {"adapters.safetensors": {"bytes": 7, "sha256": digest}}
    (step / "MANIFEST.json").write_text(json.dumps(manifest))
    (step / "state.json").write_text(json.dumps({"versions": {"mlx": "0.99.1"}}))
    evidence = seen(best_step=30, final_adapter_path=str(adapter))
    html, _, _ = written(evidence, home)
    text = Page(html).text
    assert digest in text and "as the best checkpoint's manifest says" in text and "0.99.1" in text
    (adapter / "adapters.safetensors").write_bytes(b"changed")
    html, _, _ = written(evidence, home)
    assert "DIFFERS" in html


def test_a_file_that_is_too_large_is_not_hashed_and_one_of_the_hub_cache_is_named_by_its_own(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("ab" * 32)).write_bytes(b"12345")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / ("ab" * 32))
    assert hash_file(tmp_path / "model.safetensors").sha256 == "ab" * 32
    (tmp_path / "plain").write_bytes(b"12345")
    assert hash_file(tmp_path / "plain", room=4).sha256 is None
    assert hash_file(tmp_path / "none").note.startswith("cannot be read")
