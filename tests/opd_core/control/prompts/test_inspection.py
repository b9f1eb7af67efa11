"""Inspecting prompt files: the split is the run's own, problems have their lines, advice is tried on the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.config import parse_config
from opd_core.control.prompts.inspection import PromptInspection, inspect_prompts
from opd_core.control.prompts.token_counts import MAX_COUNTED, Lengths, count_tokens
from opd_core.errors import ModelFileError, PromptFileError
from opd_core.run_prompts import load_run_prompts
from tests.tiny import tiny_tokenizer


def write(folder: Path, *records: dict[str, Any] | str, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def look(*paths: Path, **changes: Any) -> PromptInspection:
    asked: dict[str, Any] = {"seed": 42, "eval_max_samples": 100, "rollout_max_tokens": 8, **changes}
    return inspect_prompts(paths, **asked)


WORDS = st.sampled_from(["a", "A ", "b", "c", "d  e", "D e", "f", "g", "h", "i", "j", "k", "l", "m"])


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(WORDS, min_size=3, max_size=30), min_size=1, max_size=2),
    seed=st.integers(0, 9),
    most=st.integers(1, 4),
)
def test_the_counts_of_the_split_are_those_of_a_run(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], seed: int, most: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    paths = [write(folder, *({"prompt": text} for text in texts), name=f"{at}.jsonl") for at, texts in enumerate(files)]
    names = ("prompts_path", "validation_prompts_path")
    config = {name: str(path) for name, path in zip(names, paths, strict=False)}
    try:
        run = load_run_prompts(parse_config({"base_model_path": "m", "seed": seed, "eval_max_samples": most, **config}))
        expected = (len(run.train), len(run.held_out))
    except PromptFileError:
        expected = None
    found = look(*paths, seed=seed, eval_max_samples=most)
    if expected is None:
        assert found.train == 0 or found.held_out == 0
    else:
        assert (found.train, found.held_out) == expected


def test_bad_lines_are_listed_with_their_numbers_and_the_rest_is_read_on(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "one"}, "{", {"promt": "two"}, "", {"prompt": "three"}, {"prompt": ""})
    found = look(path)
    (file,) = found.files
    assert (file.rows, file.bad_lines, file.format) == (2, 3, "jsonl")
    assert [problem.line for problem in file.problems] == [2, 3, 6]
    assert "did you mean" in file.problems[1].text.lower() and str(path) not in file.problems[1].text


def test_more_bad_lines_than_are_shown_are_still_counted(tmp_path: Path) -> None:
    (file,) = look(write(tmp_path, {"prompt": "one"}, {"prompt": "two"}, *["{"] * 50)).files
    assert file.bad_lines == 50 and len(file.problems) == 20


def test_repetitions_references_turns_and_completions_are_counted(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
    path = write(
        tmp_path, {"prompt": "x", "reference": "1"}, {"prompt": "x", "reference": "2"}, {"messages": turns},
        {"messages": [*turns, {"role": "user", "content": "again"}]}, {"prompt": "y", "completion": "c"},
    )  # fmt: skip
    found = look(path)
    assert (found.files[0].rows, found.files[0].duplicates) == (5, 1)
    assert (found.with_reference, found.with_completion, found.with_system, found.with_history) == (1, 2, 2, 1)
    assert found.train + found.held_out == 4


def test_a_file_of_one_prompt_cannot_be_split_and_an_empty_one_is_a_problem(tmp_path: Path) -> None:
    one = look(write(tmp_path, "hello", name="one.txt"))
    assert (one.train, one.held_out) == (1, 0)
    (empty,) = look(write(tmp_path, "", name="empty.txt")).files
    assert empty.problems[0].line == 0 and "no prompts" in empty.problems[0].text


def test_samples_are_capped_and_escaped_and_say_on_which_side_they_are(tmp_path: Path) -> None:
    hostile = [{"prompt": f"{number} \x1b[31m\u202e</tool> " + "x" * 5000, "reference": "r"} for number in range(20)]
    found = look(write(tmp_path, *hostile), samples=4)
    assert [sample.side for sample in found.samples] == ["train"] * 3 + ["held_out"]
    for sample in found.samples:
        assert "\x1b" not in sample.prompt and "\u202e" not in sample.prompt and len(sample.prompt) < 400
    assert look(write(tmp_path, *hostile), samples=0).samples == ()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with one token a byte."""
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_are_counted_with_the_models_own_tokenizer(tmp_path: Path, model: Path) -> None:
    path = write(tmp_path, *({"prompt": "ab" * number} for number in range(1, 11)))
    counted, guessed = look(path, model=model, context_length=20), look(path)
    assert counted.tokens.lengths.max == 20 and counted.tokens.counted == 10
    assert guessed.tokens.lengths.max == 5 and guessed.tokens.counted == 0 and "estimated" in guessed.tokens.basis
    # an answer of 8 tokens leaves 12 for the prompt
    assert counted.over_length == 4 and counted.over_length_lines == (7, 8, 9, 10)
    assert guessed.over_length is None


def test_of_very_many_prompts_some_are_counted_the_longest_among_them(model: Path) -> None:
    texts = ["ab"] * (MAX_COUNTED * 3) + ["x" * 77] + ["ab"] * 10
    found = count_tokens(texts, model)
    assert found.counted < len(texts) and found.lengths == Lengths(2, 2, 77) and "estimated" in found.basis


def test_a_model_without_a_tokenizer_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        count_tokens(["a"], tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        count_tokens(["a"], tmp_path)


@pytest.mark.parametrize(
    ("record", "check", "extractor"),
    [
        ({"reference": "7", "completion": "7"}, "reference", None),
        ({"reference": "7", "completion": "2 + 5 = 7"}, "reference", {"kind": "last_number"}),
        ({"reference": "7"}, "reference", {"kind": "last_number"}),
        ({"reference": "Paris"}, "reference", None),
        (
            {"reference": "Paris", "completion": "Hm. <answer>Paris</answer>"},
            "reference",
            {"kind": "tag", "tag": "answer"},
        ),
        (
            {"reference": "12 km", "completion": "So it is\n#### 12 km"},
            "reference",
            {"kind": "regex", "pattern": r"####\s*([^\n]+)"},
        ),
        ({"reference": "long " * 40}, None, None),
        ({}, None, None),
    ],
)
def test_the_advice_follows_references_and_completions(
    tmp_path: Path, record: dict[str, str], check: str | None, extractor: dict[str, str] | None
) -> None:
    advice = look(write(tmp_path, *({"prompt": f"p{number}", **record} for number in range(10)))).advice
    assert (advice.check and advice.check["kind"], advice.extractor) == (check, extractor)
    asked = {"check": advice.check, "extractor": advice.extractor, "base_model_path": "m", "prompts_path": "p"}
    parse_config(asked)  # what is suggested can be given
    assert advice.why


def test_prompts_without_a_reference_are_named_beside_the_advice(tmp_path: Path) -> None:
    lines = [{"prompt": f"p{number}", "reference": "4"} for number in range(8)]
    found = look(write(tmp_path, *lines, {"prompt": "x"}, {"prompt": "y"}))
    assert "2 of 10 prompts have no reference" in found.advice.why
