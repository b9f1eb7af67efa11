"""The longest a token can become in a request's body, against what the tokenizers library makes of random ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from opd_core.control.estimate.answer_bytes import body_bytes_of_text, most_bytes_per_token
from opd_core.guidance import Templates
from opd_core.message_params import body_bytes, message_params
from tests.model_folders import tokenizer, write_json

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPACED = ["▁", "▁a", "▁▁▁▁", "<0x0A>", "<0xE6>", "é", "日本", "🙂", "\\\\", '"', "<<"]
DECODERS = {
    "bytes": decoders.ByteLevel(),
    "spaces": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Metaspace(),
    "joined": None,
}


@pytest.mark.parametrize(
    ("text", "size"),
    [("a", 1), ('"', 4), ("\\", 4), ("\n", 3), ("\x01", 7), ("<", 7), ("\x7f", 6), ("é", 6), ("日", 6), ("🙂", 12)],
)
def test_a_character_takes_as_many_bytes_as_its_escapes(text: str, size: int) -> None:
    assert body_bytes_of_text(text) == size
    assert body_bytes_of_text(text * 3 + "x") == 3 * size + 1
    plain, longer = (Templates().reference([{"role": "user", "content": content}]) for content in ("", text))
    grown = body_bytes(message_params(longer, "m", 1)) - body_bytes(message_params(plain, "m", 1))
    assert grown == size


@given(st.data(), st.sampled_from(sorted(DECODERS)))
def test_no_text_of_so_many_tokens_is_longer_than_the_bound(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, decoder: str
) -> None:
    own = st.text(ALPHABET, min_size=1, max_size=12) if decoder == "bytes" else st.sampled_from(SPACED)
    tokens = dict.fromkeys([*ALPHABET, *data.draw(st.lists(own, max_size=6))])
    library = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    library.decoder = DECODERS[decoder]
    added = data.draw(st.sampled_from(["<|end|>", "<|é x|>", "▁<s>", "Ġ end"]))
    library.add_special_tokens([AddedToken(added, special=True, normalized=False)])
    folder = tmp_path_factory.mktemp("model")
    library.save(str(folder / "tokenizer.json"))
    bound = most_bytes_per_token(folder)
    ids = data.draw(st.lists(st.integers(0, library.get_vocab_size() - 1), max_size=20))
    text = library.decode(ids, skip_special_tokens=False)
    assert bound is not None and body_bytes_of_text(text) <= bound * len(ids)


def test_the_bound_is_reached_by_the_worst_token(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "Ġ" * 20: 1, "\\" * 16: 2, "Ċ" * 20: 3, "<" * 8: 4}
    write_json(
        tmp_path / "tokenizer.json", {**tokenizer(vocab=vocabulary, merges=[]), "decoder": {"type": "ByteLevel"}}
    )
    assert most_bytes_per_token(tmp_path) == max(20, 16 * 4, 20 * 3, 8 * 7)


def test_bytes_that_are_no_character_count_as_replacement_characters(tmp_path: Path) -> None:
    library = Tokenizer(models.BPE(vocab={"a": 0, "æ" * 5: 1}, merges=[]))  # "æ" stands for byte 0xE6, which begins one
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    assert most_bytes_per_token(tmp_path) == body_bytes_of_text(library.decode([1])) == 5 * 6


def test_tokens_that_only_the_configuration_adds_count(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", tokenizer())
    before = most_bytes_per_token(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "x" * 50}}})
    assert (before, most_bytes_per_token(tmp_path)) == (len("<s>") + 2 * 6 + 1, 51)


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Unheard"},
        {"type": "Sequence", "decoders": []},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "long text"},
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Replace"}]},
    ],
)
def test_a_decoder_that_is_not_known_gives_no_bound(tmp_path: Path, decoder: dict[str, Any]) -> None:
    write_json(tmp_path / "tokenizer.json", {**tokenizer(), "decoder": decoder})
    assert most_bytes_per_token(tmp_path) is None


def test_a_missing_or_broken_tokenizer_gives_no_bound(tmp_path: Path) -> None:
    assert most_bytes_per_token(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    assert most_bytes_per_token(tmp_path) is None
