"""The header of a GGUF file, read and bounds-checked before anything maps the file's data.

MLX reads GGUF data through a memory map: a truncated file would kill the process, and a tensor type it has
no kernel for becomes float16 silently or fails without naming the tensor. So the header is read first.
Format: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.errors import ModelFileError
from opd_core.types import clean_text

# type id: (name, values a block, bytes a block)
SUPPORTED_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
}
OTHER_TYPES = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16"}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata by key, and each tensor's shape as MLX and NumPy write it (rows first)."""

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> GGUFHeader:
    """Read a GGUF file's metadata and tensor list, and check that all tensor data is there.

    Raises:
        ModelFileError: not a readable GGUF of version 2 or 3, truncated, or with an unsupported tensor type.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()
    except OSError as error:
        raise ModelFileError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from error
    except ModelFileError:
        raise
    except (struct.error, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"{str(path)!r} ends inside its header or is damaged; copy or download it again."
        ) from error


class _Reader:
    """A cursor over the mapped file; `struct` refuses to read past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def header(self) -> GGUFHeader:
        if self.data[:4] != b"GGUF":
            raise ModelFileError(f"{str(self.path)!r} is not a GGUF file (it does not begin with 'GGUF').")
        self.position = 4
        version, tensor_count, pair_count = self.take("IQQ")
        if version not in (2, 3):
            raise ModelFileError(f"{str(self.path)!r} has GGUF version {version}; only versions 2 and 3 are read.")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self.string()
            metadata[key] = self.value(*self.take("I"))
        shapes: dict[str, tuple[int, ...]] = {}
        end = 0
        for _ in range(tensor_count):
            name, shape, tensor_end = self.tensor()
            if name in shapes:
                raise ModelFileError(f"{str(self.path)!r} lists the tensor {clean_text(name, 80)!r} twice.")
            shapes[name], end = shape, max(end, tensor_end)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(alignment)
        missing = math.ceil(self.position / alignment) * alignment + end - len(self.data)
        if missing > 0:
            raise ModelFileError(f"{str(self.path)!r} is truncated: {missing} bytes are missing. Copy it again.")
        return GGUFHeader(metadata, shapes)

    def tensor(self) -> tuple[str, tuple[int, ...], int]:
        """Name, shape, and where its data ends, counted from the start of the data."""
        name = self.string()
        (dimensions,) = self.take("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(dimensions)
        lengths = self.take("Q" * dimensions)
        type_id, offset = self.take("IQ")
        if type_id not in SUPPORTED_TYPES:
            raise ModelFileError(
                f"The tensor {clean_text(name, 80)!r} in {str(self.path)!r} has the type "
                f"{OTHER_TYPES.get(type_id, f'number {type_id}')}; supported are "
                f"{', '.join(name for name, _, _ in SUPPORTED_TYPES.values())}. "
                "Use a Q8_0 or F16 file of the same model."
            )
        _, block_values, block_bytes = SUPPORTED_TYPES[type_id]
        if lengths and lengths[0] % block_values:
            raise ValueError(lengths)
        return name, tuple(reversed(lengths)), offset + math.prod(lengths) // block_values * block_bytes

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        (raw,) = self.take(f"{min(length, len(self.data))}s")
        return str(raw, "utf-8")

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.take(SCALARS[kind])[0]
        if kind != ARRAY or nested:
            raise ValueError(kind)
        item_kind, count = self.take("IQ")
        if item_kind in SCALARS:
            return list(self.take(f"{min(count, len(self.data))}{SCALARS[item_kind]}"))
        return [self.value(item_kind, nested=True) for _ in range(count)]
