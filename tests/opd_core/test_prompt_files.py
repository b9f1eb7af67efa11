"""Prompt files: every format is read, every bad line is named, and no prompt is ever on both sides."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.errors import PromptFileError
from opd_core.prompt_files import (
    PromptExample,
    PromptLimits,
    check_disjoint,
    iter_prompts,
    load_prompts,
    read_prompts,
    split_prompts,
)
from opd_core.prompt_records import make_example


def write(folder: Path, content: str | bytes, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def example(text: str, line_number: int = 1) -> PromptExample:
    return make_example([{"role": "user", "content": text}], None, None, line_number)


def texts(examples: list[PromptExample]) -> list[str]:
    return [one.prompt for one in examples]


def error_of(path: Path, limits: PromptLimits | None = None) -> str:
    with pytest.raises(PromptFileError) as caught:
        load_prompts(path, limits=limits or PromptLimits())
    return str(caught.value)


def test_a_prompt_line_becomes_one_user_turn(tmp_path: Path) -> None:
    (one,) = read_prompts(write(tmp_path, '{"prompt": "two plus two", "reference": "4"}\n'))
    assert one.messages == ({"role": "user", "content": "two plus two"},)
    assert (one.prompt, one.completion, one.reference, one.line_number) == ("two plus two", None, "4", 1)


def test_a_last_assistant_turn_becomes_the_completion(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "name a colour"},
        {"role": "assistant", "content": "red"},
    ]
    (one,) = read_prompts(write(tmp_path, json.dumps({"messages": turns})))
    assert list(one.messages) == turns[:2]
    assert one.completion == "red"


def test_prompt_and_completion_stand_side_by_side(tmp_path: Path) -> None:
    (one,) = read_prompts(write(tmp_path, '{"prompt": "a", "completion": "b", "reference": null}'))
    assert (one.completion, one.reference) == ("b", None)


def test_a_text_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfone\r\n\r\n  two \r\n{}", "prompts.TXT")
    found = read_prompts(path)
    assert [(one.prompt, one.line_number) for one in found] == [("one", 1), ("two", 3), ("{}", 4)]


def test_byte_order_mark_crlf_and_blank_lines_are_read_over(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf{"prompt": "one"}\r\n \r\n\n{"prompt": "two"}\r\n')
    assert [(one.prompt, one.line_number) for one in read_prompts(path)] == [("one", 1), ("two", 4)]


def test_the_id_depends_on_the_turns_alone(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "x"}\n{"prompt": "y"}\n{"reference": "r", "prompt": "x"}')
    first, second, third = iter_prompts(path)
    assert first.prompt_id == third.prompt_id != second.prompt_id
    assert first.prompt_id == "7c5139ff349b5009"  # stable between versions: runs and caches refer to it


def test_repetitions_are_dropped_and_counted(tmp_path: Path) -> None:
    loaded = load_prompts(write(tmp_path, "a\nb\na\na\n", "prompts.txt"))
    assert (texts(loaded.examples), loaded.duplicates_dropped) == (["a", "b"], 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "x"', "not valid JSON at column"),
        (b'["x"]', "must be one JSON object"),
        (b'"x"', "must be one JSON object"),
        (b'{"prompt": "x", "prompt": "y"}', "stands twice"),
        (b'{"prompt": NaN}', "NaN is not JSON"),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"prompt": 7}', "it is a number"),
        (b'{"prompt": " "}', "it is empty"),
        (b'{"prompt": "x", "completion": ["y"]}', '"completion" must be a text'),
        (b'{"prompt": "x", "messages": []}', "exactly one of"),
        (b'{"reference": "x"}', "exactly one of"),
        (b'{"messages": []}', "at least one turn"),
        (b'{"messages": ["x"]}', "message 1: must be"),
        (b'{"messages": [{"role": "user"}]}', '"content" must be a text that is not empty; it is missing'),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', '"role" must be user or assistant'),
        (b'{"messages": [{"role": "user", "content": "x", "name": "y"}]}', "allowed are role, content"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "must end with a user turn"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', "must end with a user turn"),
        (b'{"prompt": "x\0"}', "NUL"),
        (b'{"prompt": "x\\u0000"}', "NUL"),
        (b'{"prompt": "x\\ud800"}', "surrogate"),
        (b'{"prompt": "\xff"}', "byte 13 is not UTF-8"),
        (b'{"prompt":' + b"[" * 100_000, "nested too deeply"),
        (b'{"promt": "x"}', "Did you mean 'prompt'?"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path: Path, line: bytes, said: str) -> None:
    path = write(tmp_path, b'{"prompt": "fine"}\n' * 6 + line + b"\n")
    message = error_of(path)
    assert f"{path}, line 7" in message
    assert said in message


def test_both_an_assistant_turn_and_a_completion_are_refused(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    message = error_of(write(tmp_path, json.dumps({"messages": turns, "completion": "z"})))
    assert "Keep one of them" in message


def test_an_unknown_key_is_shown_without_its_control_characters(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, '{"prompt": "x", "\\u001b[2J": 1}'))
    assert "\x1b" not in message
    assert "allowed are prompt, messages, completion, reference" in message


@pytest.mark.parametrize("content", ["", "\n \n\r\n", "\ufeff"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str) -> None:
    assert "holds no prompts" in error_of(write(tmp_path, content))


def test_a_missing_file_a_folder_and_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    assert "does not exist" in error_of(tmp_path / "no.jsonl")
    assert "is a folder" in error_of(tmp_path / "folder.jsonl")
    assert "name the file .jsonl" in error_of(write(tmp_path, "{}", "prompts.json"))
    assert "does not end in .jsonl or .txt" in error_of(write(tmp_path, "x", "prompts.csv"))
    assert "cannot be opened" in error_of(Path("a\0b.txt"))


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe.txt"
    os.mkfifo(path)
    assert "not a regular file" in error_of(path)


def test_every_cap_is_enforced_and_named(tmp_path: Path) -> None:
    path = write(tmp_path, "aaaa\nbbbb\ncccc\n", "prompts.txt")
    assert "4 bytes" in error_of(path, PromptLimits(max_line_bytes=4))
    assert "2 lines" in error_of(path, PromptLimits(max_lines=2))
    assert "14 bytes" in error_of(path, PromptLimits(max_file_bytes=14))
    assert len(read_prompts(path, limits=PromptLimits(15, 5, 3))) == 3


def test_a_file_that_grows_while_it_is_read_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path, "a\n" * 4, "prompts.txt")
    prompts = iter_prompts(path, limits=PromptLimits(max_file_bytes=2_000))
    next(prompts)
    with path.open("ab") as handle:
        handle.write(b"b\n" * 2_000)
    with pytest.raises(PromptFileError, match="more than the 2000 bytes"):
        list(prompts)


def test_a_huge_line_is_never_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "sparse.txt"
    with path.open("wb") as handle:
        handle.truncate(10**12)  # sparse: reading one line of it whole would exhaust the memory
    assert "line 1: longer than" in error_of(path, PromptLimits(max_file_bytes=10**13))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".jsonl", ".txt"]))
def test_any_bytes_give_prompts_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        assert read_prompts(path)
    except PromptFileError as error:
        assert str(path) in str(error)


def test_the_split_depends_on_text_and_seed_alone() -> None:
    prompts = [example(f"prompt {index}", index) for index in range(300)]
    train, held_out = split_prompts(prompts, 42)
    assert 30 <= len(held_out) <= 90  # 300 draws at 0.2: mean 60, five deviations are 35
    assert sorted(texts(train) + texts(held_out)) == sorted(texts(prompts))
    reversed_train, reversed_held_out = split_prompts(prompts[::-1], 42)
    assert (reversed_train, reversed_held_out) == (train[::-1], held_out[::-1])
    assert split_prompts(prompts, 43)[1] != held_out


def test_adding_prompts_moves_no_other_to_the_other_side() -> None:
    prompts = [example(f"prompt {index}") for index in range(200)]
    small_train, small_held_out = split_prompts(prompts[:50], 1)
    train, held_out = split_prompts(prompts, 1)
    assert set(texts(small_train)) <= set(texts(train))
    assert set(texts(small_held_out)) <= set(texts(held_out))


def test_equal_texts_fall_on_the_same_side_whatever_stands_before_them() -> None:
    system = {"role": "system", "content": "Be brief."}
    pairs = [
        (example(f"Prompt {index}"), make_example([system, *example(f"prompt  {index}").messages], None, None, 2))
        for index in range(40)
    ]
    train, held_out = split_prompts([one for pair in pairs for one in pair], 7)
    assert held_out
    assert not {one.prompt.lower().split()[1] for one in train} & {one.prompt.split()[1] for one in held_out}


@pytest.mark.parametrize("fraction", [0.0, 0.2, 1.0])
def test_two_prompts_give_one_on_each_side(fraction: float) -> None:
    for seed in range(20):
        train, held_out = split_prompts([example("a"), example("b")], seed, fraction)
        assert len(train) == len(held_out) == 1


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(PromptFileError, match="at least 2 different prompts; found 1"):
        split_prompts([example("a"), example("A ")], 1)


def test_held_out_prompts_beyond_the_cap_are_not_trained_on() -> None:
    prompts = [example(f"prompt {index}") for index in range(100)]
    train, all_held_out = split_prompts(prompts, 3)
    capped_train, held_out = split_prompts(prompts, 3, max_held_out=5)
    assert capped_train == train
    assert len(held_out) == 5
    assert set(texts(held_out)) < set(texts(all_held_out))


def test_prompts_of_both_files_are_removed_from_training() -> None:
    train, removed = check_disjoint([example("a"), example("b"), example("C ")], [example("c"), example("a")])
    assert (texts(train), removed) == (["b"], 2)
    with pytest.raises(PromptFileError, match="none is left to train on"):
        check_disjoint([example("a")], [example("a")])
