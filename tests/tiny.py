"""A tiny Llama with a byte-level tokenizer, as an ordinary MLX model folder: real code in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from mlx_lm.models import llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from opd_core.training.arrays import flat

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_config(vocab_size: int = 259, tied: bool = True) -> dict[str, object]:
    """config.json of the tiny model."""
    return {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab_size,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "eos_token_id": [0, 2],
    }


def tiny_llama(
    seed: int = 0, gain: float = 3.0, vocab_size: int = 259, tied: bool = True, layers: int = 2
) -> llama.Model:
    """The model itself, seeded; `gain` spreads its logits so that sampling and divergences are not near uniform."""
    config = tiny_config(vocab_size, tied) | {"num_hidden_layers": layers}
    model = llama.Model(llama.ModelArgs.from_dict(config))
    keys = mx.random.split(mx.random.key(seed), len(flat(model.parameters())))
    weights = []
    for key, (name, value) in zip(keys, sorted(flat(model.parameters()).items()), strict=True):
        drawn = mx.ones(value.shape) if value.ndim == 1 else mx.random.normal(value.shape, key=key) * gain / 32**0.5
        weights.append((name, drawn))
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model


def tiny_tokenizer(extra_token: str | None = None) -> Tokenizer:
    """One token a byte, and three special ones; `extra_token` makes it another tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    merges: list[tuple[str, str]] = []
    if extra_token is not None:
        vocabulary[extra_token] = len(vocabulary)
        merges = [(extra_token[0], extra_token[1])]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tiny_model(
    folder: Path, seed: int = 0, extra_token: str | None = None, gain: float = 3.0, tied: bool = True
) -> Path:
    """Write the tiny model as a folder that mlx-lm loads; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = 259 + (extra_token is not None)
    model = tiny_llama(seed, gain, vocab_size, tied)
    mx.save_safetensors(str(folder / "model.safetensors"), flat(model.parameters()), metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(tiny_config(vocab_size, tied)))
    tiny_tokenizer(extra_token).save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder
