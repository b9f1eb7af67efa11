"""The demo's data is fair: the two sets share no template, and the check wants exactly the form."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from pydantic import TypeAdapter

from opd_core.demo import demo_check, demo_files, demo_teacher
from opd_core.extractor import CheckSpec, score
from opd_core.prompt_files import check_disjoint, read_prompts

CHECK: CheckSpec = TypeAdapter[CheckSpec](CheckSpec).validate_python(demo_check())
TRAIN = [example.prompt for example in read_prompts(demo_files().train)]
HELD_OUT = [example.prompt for example in read_prompts(demo_files().held_out)]
TEACHER = [example["prompt"] for example in demo_teacher()[1]]
GREETINGS = {"hello", "hi", "hey", "thanks", "bye", "goodbye", "welcome", "dear"}
QUESTION_WORDS = {"who", "what", "when", "where", "why", "how", "which", "can", "could", "do", "does", "is", "are"}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def runs_of_words(text: str, length: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[start : start + length]) for start in range(len(found) - length + 1)}


def test_there_are_80_prompts_to_train_on_and_40_held_out() -> None:
    assert (len(TRAIN), len(HELD_OUT)) == (80, 40)


def test_no_prompt_stands_twice_or_in_two_places() -> None:
    everything = [" ".join(words(text)) for text in TRAIN + HELD_OUT + TEACHER]
    assert max(Counter(everything).values()) == 1
    files = demo_files()
    assert check_disjoint(read_prompts(files.train), read_prompts(files.held_out))[1] == 0


@pytest.mark.parametrize("others", [TRAIN, TEACHER], ids=["train", "teacher"])
def test_no_three_words_in_a_row_are_shared_with_the_held_out_prompts(others: list[str]) -> None:
    seen = set().union(*(runs_of_words(text, 3) for text in others))
    assert [text for text in HELD_OUT if runs_of_words(text, 3) & seen] == []


def test_held_out_prompts_do_not_begin_like_training_prompts() -> None:
    beginnings = {tuple(words(text)[:2]) for text in TRAIN}
    assert [text for text in HELD_OUT if tuple(words(text)[:2]) in beginnings] == []


def test_held_out_prompts_are_of_many_shapes() -> None:
    assert len({words(text)[0] for text in HELD_OUT}) == len(HELD_OUT)
    assert len({len(words(text)) for text in HELD_OUT}) >= 5
    assert max(Counter(len(words(text)) for text in HELD_OUT).values()) <= 20


@pytest.mark.parametrize("text", TRAIN + HELD_OUT + TEACHER)
def test_every_prompt_is_a_short_phrase_and_no_question_or_greeting(text: str) -> None:
    assert 2 <= len(words(text)) <= 9
    assert text.isascii() and text == text.strip() and not set('?"{}\\') & set(text)
    assert words(text)[0] not in GREETINGS | QUESTION_WORDS
    assert not GREETINGS & set(words(text))


def test_the_teacher_shows_what_the_check_wants() -> None:
    system_prompt, examples = demo_teacher()
    assert system_prompt
    assert 3 <= len(examples) <= 6
    assert all(example.keys() == {"prompt", "completion"} for example in examples)
    assert [example["completion"] for example in examples] == [json.dumps({"text": text}) for text in TEACHER]


def test_the_check_accepts_the_form_of_every_prompt() -> None:
    for example in read_prompts(demo_files().held_out) + read_prompts(demo_files().train):
        assert score(CHECK, json.dumps({"text": example.prompt}), example) == 1.0
        assert score(CHECK, f'{{"text":"{example.prompt.lower()}."}}\n', example) == 1.0


@pytest.mark.parametrize(
    "near_miss",
    [
        "{prompt}",
        '"{prompt}"',
        '{"text": "{prompt}", "note": "short"}',
        '{"text": {"text": "{prompt}"}}',
        '{"message": "{prompt}"}',
        '{"Text": "{prompt}"}',
        'Sure: {"text": "{prompt}"}',
        '{"text": "{prompt}"} Anything else?',
        '```json\n{"text": "{prompt}"}\n```',
        '{"text": "{prompt}"',
        '{"text": "{prompt} and so on"}',
        '{"text": "the {prompt}"}',
        "{'text': '{prompt}'}",
        '{"text": ""}',
    ],
)
def test_the_check_rejects_near_misses(near_miss: str) -> None:
    for example in read_prompts(demo_files().held_out):
        assert score(CHECK, near_miss.replace("{prompt}", example.prompt), example) == 0.0


def test_the_check_rejects_the_form_of_another_prompt_and_a_shortened_one() -> None:
    held_out = read_prompts(demo_files().held_out)
    for example, other in zip(held_out, held_out[1:] + held_out[:1], strict=True):
        assert score(CHECK, json.dumps({"text": other.prompt}), example) == 0.0
        assert score(CHECK, json.dumps({"text": example.prompt.rsplit(" ", 1)[0]}), example) == 0.0
