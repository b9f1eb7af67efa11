"""Prompts, teacher contexts and stop tokens; a tokenizer that differs is caught."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer

from opd_core.config import TeacherExample
from opd_core.errors import CompatibilityError
from opd_core.training.lora import LoadedBase
from opd_core.training.tokenization import (
    check_same_encoding,
    completion_ids,
    decode_completion,
    end_of_turn_id,
    prompt_ids,
    stop_ids,
    teacher_messages,
)
from tests.tiny import write_tiny_model

HELLO = [{"role": "user", "content": "hello"}]
EXAMPLES = (TeacherExample(prompt="a", completion="A"),)


def test_prompt_ids_end_where_the_answer_starts(base: LoadedBase) -> None:
    text = base.tokenizer.decode(list(prompt_ids(base.tokenizer, HELLO)))
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_the_end_of_turn_is_the_templates_and_every_end_token_stops(base: LoadedBase) -> None:
    assert end_of_turn_id(base.tokenizer) == 2
    assert stop_ids(base.tokenizer) == {0, 2}


def test_a_template_without_an_end_of_turn_is_refused(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    with pytest.raises(CompatibilityError, match="never stop"):
        end_of_turn_id(tokenizer)


def test_sft_targets_end_with_the_stop_token(base: LoadedBase) -> None:
    ids = completion_ids(base.tokenizer, "ok")
    assert ids[-1] == 2
    assert decode_completion(base.tokenizer, ids, base.stop_ids) == "ok"


def test_decoding_drops_the_stop_token_and_nothing_else(base: LoadedBase) -> None:
    ids = tuple(base.tokenizer.encode(" é\n", add_special_tokens=False))
    assert decode_completion(base.tokenizer, (*ids, 2), base.stop_ids) == " é\n"
    assert decode_completion(base.tokenizer, ids, base.stop_ids) == " é\n"


def test_the_teachers_context_stands_before_the_conversation() -> None:
    assert teacher_messages(HELLO, "Be terse.", EXAMPLES) == [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "A"},
        *HELLO,
    ]


def test_a_prompts_own_system_turn_joins_the_teachers() -> None:
    own = [{"role": "system", "content": "You are a bird."}, *HELLO]
    assert teacher_messages(own, "Be terse.", ())[0] == {"role": "system", "content": "Be terse.\n\nYou are a bird."}
    assert teacher_messages(own, None, ()) == own


def test_another_tokenizer_is_refused_with_the_text_that_shows_it(base: LoadedBase, tmp_path: Path) -> None:
    other = load_tokenizer(write_tiny_model(tmp_path / "other", extra_token="th"))
    check_same_encoding(base.tokenizer, base.tokenizer, "itself")
    with pytest.raises(CompatibilityError, match=r"'other'.*jumps over the lazy"):
        check_same_encoding(base.tokenizer, other, "other")


def test_a_template_that_refuses_a_turn_is_a_plain_refusal(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(CompatibilityError, match=r"turns user: System role not supported.*teacher_examples"):
        prompt_ids(tokenizer, HELLO)
