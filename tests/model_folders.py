"""Small model and adapter folders, written to disk: real files of a tiny shape, with no MLX involved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from opd_core.config import RunConfig
from opd_core.paths import HomePaths
from opd_core.roots import Roots
from opd_core.settings import Settings

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 32, 48, 2, 16
BLOCK_SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def make_model(
    folder: Path, *, hidden: int = HIDDEN, vocabulary: int = VOCABULARY, bits: int | None = None, **config: Any
) -> Path:
    """A Llama-like folder; with `bits`, its block weights are packed into 32-bit words with scales beside them."""
    folder.mkdir(parents=True)
    factor = hidden // HIDDEN
    tensors: dict[str, Any] = {
        "model.embed_tokens.weight": np.zeros((vocabulary, hidden), np.float32),
        "model.norm.weight": np.zeros(hidden, np.float32),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in BLOCK_SHAPES.items():
            key, shape = f"model.layers.{layer}.{name}", (rows * factor, columns * factor)
            if bits is None:
                tensors[f"{key}.weight"] = np.zeros(shape, np.float32)
            else:
                tensors[f"{key}.weight"] = np.zeros((shape[0], shape[1] * bits // 32), np.uint32)
                tensors[f"{key}.scales"] = np.zeros((shape[0], 1), np.float16)
                tensors[f"{key}.biases"] = np.zeros((shape[0], 1), np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    settings = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": LAYERS,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "eos_token_id": 2,
        **({"quantization": {"group_size": 32, "bits": bits}} if bits else {}),
    }
    write_json(folder / "config.json", settings | config)
    write_json(folder / "tokenizer.json", tokenizer())
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    return folder


def tokenizer(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of eight tokens; `changes` replace parts of its `model`."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "a", "b", "c", "d", "ab", "cd", "abcd"])}
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["a b", "c d", "ab cd"]} | changes
    return {"version": "1.0", "added_tokens": [{"id": 0, "content": "<s>", "special": True}], "model": model}


def make_adapter(
    folder: Path,
    *,
    rank: int = 4,
    hidden: int = HIDDEN,
    layers: tuple[int, ...] = (0, 1),
    kind: str = "lora",
    **config: Any,
) -> Path:
    """An mlx-lm adapter for `make_model(hidden=hidden)` on q_proj and v_proj."""
    folder.mkdir(parents=True)
    tensors: dict[str, Any] = {}
    for layer in layers:
        for name, outputs in (("self_attn.q_proj", hidden), ("self_attn.v_proj", hidden // 2)):
            key = f"model.layers.{layer}.{name}"
            tensors[f"{key}.lora_a"] = np.zeros((hidden, rank), np.float32)
            tensors[f"{key}.lora_b"] = np.zeros((rank, outputs), np.float32)
            if kind == "dora":
                tensors[f"{key}.m"] = np.zeros(outputs, np.float32)
    save_file(tensors, folder / "adapters.safetensors")
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    settings = {
        "fine_tune_type": kind,
        "num_layers": LAYERS,
        "lora_parameters": {"rank": rank, "scale": 2.0, "dropout": 0.0, "keys": keys},
    }
    write_json(folder / "adapter_config.json", settings | config)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def write_prompts(path: Path, count: int = 60, **fields: Any) -> Path:
    """A .jsonl of `count` different prompts, each with `fields`."""
    lines = [json.dumps({"prompt": f"prompt number {number}", **fields}) for number in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class World:
    """A prepared home with one model, one prompt file, and a configuration that may start."""

    def __init__(self, folder: Path) -> None:
        self.home = HomePaths(folder / "home")
        self.home.prepare()
        self.roots = Roots.of(self.home.home)
        self.settings = Settings(self.home)
        self.base = make_model(self.home.models / "base")
        self.prompts = write_prompts(self.home.home / "prompts.jsonl")

    def config(self, **changes: Any) -> RunConfig:
        """Same base as teacher with a system prompt; `changes` replace or add fields."""
        fields: dict[str, Any] = {
            "base_model_path": "base",
            "prompts_path": str(self.prompts),
            "teacher_system_prompt": "Answer in JSON.",
            "learning_rate": 1e-4,
            "kl_warmup_steps": 10,
        }
        return RunConfig(**(fields | changes))
