"""The exact reading of a safetensors header: every byte of the file is accounted for, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from opd_core.errors import ModelFileError
from opd_core.tensor_files import read_exact_header, read_header


def write(path: Path, header: dict[str, Any] | str, data_bytes: int) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(data_bytes))
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_what_mlx_writes_is_exact(tmp_path: Path) -> None:
    arrays = {"b": mx.ones((3,)), "a": mx.zeros((2, 2), dtype=mx.uint64), "c": mx.ones((5,), dtype=mx.bool_)}
    mx.save_safetensors(str(tmp_path / "a.safetensors"), arrays)
    assert {name: tensor.shape for name, tensor in read_exact_header(tmp_path / "a.safetensors").tensors.items()} == {
        "a": (2, 2),
        "b": (3,),
        "c": (5,),
    }
    mx.save_safetensors(str(tmp_path / "none.safetensors"), {})
    assert read_exact_header(tmp_path / "none.safetensors").tensors == {}


@pytest.mark.parametrize(
    ("header", "data_bytes", "problem"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(12, 16, [1])}, 16, "'b' does not lie"),  # a gap
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "'b' does not lie"),  # they overlap
        ({"a": entry(4, 8, [1])}, 8, "'a' does not lie"),  # not from the first byte
        ({"a": entry(0, 8, [3])}, 8, "'a' does not lie"),  # too small for its shape
        ({"a": entry(0, 8, [2])}, 9, "holds 9 bytes of tensors where 8"),  # a byte that nobody owns
        ({"a": entry(0, 8, [2])}, 7, "cut short"),
        ({"a": entry(0, 8, [2], "F8_E4M3")}, 8, "type 'F8_E4M3'"),
        ({"a": entry(0, 8, [2], "\x1b[31mF32")}, 8, "which is not used here"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8]}}, 8, "damaged"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, 8, "damaged"),
        ('{"a": %(a)s, "a": %(a)s}' % {"a": json.dumps(entry(0, 8, [2]))}, 8, "stands twice"),  # noqa: UP031
    ],
)
def test_a_file_that_is_not_exact_is_refused(
    tmp_path: Path, header: dict[str, Any] | str, data_bytes: int, problem: str
) -> None:
    with pytest.raises(ModelFileError, match=problem):
        read_exact_header(write(tmp_path / "a.safetensors", header, data_bytes))


def test_a_name_that_stands_twice_is_refused_in_any_file(tmp_path: Path) -> None:
    text = json.dumps({"a": entry(0, 4, [1])})[:-1] + ', "a": ' + json.dumps(entry(0, 4, [1])) + "}"
    with pytest.raises(ModelFileError, match="twice"):
        read_header(write(tmp_path / "a.safetensors", text, 4))
