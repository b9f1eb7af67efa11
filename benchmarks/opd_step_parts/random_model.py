"""Model folders with random weights: `python -m benchmarks.opd_step_parts.random_model FOLDER [--tokenizer FOLDER]`.

With a tokenizer's folder: the shape of Qwen2 1.5B in bfloat16. Without: a small Llama trunk in float32 with a
tokenizer of one token a byte and `--vocab` logits, for measuring how cost grows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama, qwen2

from opd_core.training.arrays import flat

QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write(folder: Path, config: dict[str, Any], eos: list[int], dtype: mx.Dtype) -> None:
    """Weights of a normal distribution scaled to keep a state's size, and config.json; last, so that it says ready."""
    family: Any = qwen2 if config["model_type"] == "qwen2" else llama
    model: nn.Module = family.Model(family.ModelArgs.from_dict(config))
    mx.random.seed(0)
    weights = {
        name: mx.ones(array.shape, dtype)
        if array.ndim == 1
        else (mx.random.normal(array.shape) / array.shape[-1] ** 0.5).astype(dtype)
        for name, array in flat(model.parameters()).items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": eos}), encoding="utf-8")


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--vocab", type=int, default=8192)
    options = parser.parse_args()
    folder: Path = options.folder
    if options.tokenizer is None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tests are no installed package
        from tests.tiny import write_tiny_model

        write_tiny_model(folder)
        write(folder, {**SMALL, "vocab_size": options.vocab}, [0, 2], mx.float32)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(options.tokenizer / name, folder / name)
    eos = json.loads((options.tokenizer / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    write(folder, QWEN, eos, mx.bfloat16)


if __name__ == "__main__":
    main()
