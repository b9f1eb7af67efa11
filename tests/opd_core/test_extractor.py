"""Final answers are found where they stand, checks score them, and no text can hang or break either."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from opd_core.extractor import CheckSpec, ExtractorSpec, extract, needs_reference, score
from opd_core.matching import normalise, same_answer
from opd_core.prompt_records import PromptExample, make_example

CHECKS: TypeAdapter[CheckSpec] = TypeAdapter(CheckSpec)
NUMBERS = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
NOTE = {"kind": "json_equals", "form": {"note": "{prompt}"}}


def example(prompt: str = "Fog, on the hill!", reference: str | None = None) -> PromptExample:
    return make_example([{"role": "user", "content": prompt}], None, reference, 1)


def scored(
    check: dict[str, Any], text: str, one: PromptExample | None = None, extractor: dict[str, str] | None = None
) -> float:
    spec = ExtractorSpec.model_validate(extractor or {})
    return score(CHECKS.validate_python(check), text, one or example(), spec)


@pytest.mark.parametrize(
    ("spec", "text", "answer"),
    [
        ({}, "  all of it\n", "all of it"),
        ({"kind": "tag", "tag": "answer"}, "<answer>1</answer> no: <answer> 2 </answer> end", "2"),
        ({"kind": "tag", "tag": "answer"}, "<answer>1</answer> no: <answer> 2", "1"),
        ({"kind": "tag", "tag": "answer"}, "</answer><answer>", None),
        ({"kind": "regex", "pattern": r"#### (\S+)"}, "#### 3 then #### 4.", "4."),
        ({"kind": "regex", "pattern": r"\d+"}, "7 of 9", "9"),
        ({"kind": "regex", "pattern": r"(x)?y"}, "y", None),
        ({"kind": "regex", "pattern": r"\d"}, "none", None),
        ({"kind": "json_path", "path": "a.items.1"}, 'so {x} {"a": {"items": [1, " two "]}} ok', "two"),
        ({"kind": "json_path", "path": "a"}, '{"a": [1, true, null]}', "[1, true, null]"),
        ({"kind": "json_path", "path": "a.7"}, '{"a": [1]}', None),
        ({"kind": "json_path", "path": "a.b"}, '{"a": "text"}', None),
        ({"kind": "json_path", "path": "a"}, '{"a": 1', None),
        ({"kind": "last_number"}, "12 apples cost $1,234.50.", "1234.50"),
        ({"kind": "last_number"}, "from 3-4", "4"),
        ({"kind": "last_number"}, "it is -7, or -.5", "-.5"),
        ({"kind": "last_number"}, "none", None),
    ],
)
def test_the_final_answer_is_taken_out(spec: dict[str, str], text: str, answer: str | None) -> None:
    assert extract(ExtractorSpec.model_validate(spec), text) == answer


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "tag"}, "needs the field 'tag'"),
        ({"kind": "regex", "path": "a"}, "needs the field 'pattern'"),
        ({"kind": "whole", "tag": "answer"}, "does not take the field 'tag'"),
        ({"kind": "regex", "pattern": "(a"}, "'(a' is not a valid regular expression: missing )"),
        ({"kind": "regex", "pattern": "(" * 1_500}, "is not a valid regular expression"),
        ({"kind": "regex", "pattern": "a" * 2_001}, "at most 2000 are allowed"),
        ({"kind": "tag", "tag": "<b>"}, "should match pattern"),
        ({"kind": "words"}, "'whole', 'tag', 'regex', 'json_path' or 'last_number'"),
        ({"kind": "whole", "limit": "1"}, "Extra inputs"),
    ],
)
def test_an_extractor_that_cannot_work_is_refused(spec: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ExtractorSpec.model_validate(spec)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"kind": "regex", "pattern": "[a"}, "is not a valid regular expression"),
        ({"kind": "regex", "pattern": ""}, "at least 1 character"),
        ({"kind": "json_schema", "schema": {"type": "objekt"}}, "the JSON schema is not valid"),
        ({"kind": "json_schema", "schema": {"items": {"pattern": "(a"}}}, "the JSON schema is not valid"),
        ({"kind": "json_schema", "schema": {"pattern": "a" * 2_001}}, "at most 2000 are allowed"),
        ({"kind": "json_schema", "schema": {"pattern": "(" * 1_500}}, "nested too deeply"),
        ({"kind": "json_schema", "schema": {"patternProperties": {"a": {}}}}, '"patternProperties"'),
        ({"kind": "json_schema", "schema": {"$ref": "https://example.com/a.json"}}, "which is not in it"),
        ({"kind": "json_schema", "schema": {"not": {"$ref": "#/$defs/none"}}}, "which is not in it"),
        ({"kind": "json_equals", "form": {}}, "at least 1 item"),
        ({"kind": "json_equals", "form": [1]}, "valid dictionary"),
        ({"kind": "guess"}, "'regex', 'json_schema', 'reference', 'json_equals'"),
    ],
)
def test_a_check_that_cannot_work_is_refused(check: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CHECKS.validate_python(check)
    assert said in str(caught.value)


def test_a_pattern_matches_all_of_the_answer_unless_search_is_asked_for() -> None:
    assert scored({"kind": "regex", "pattern": r"\d+"}, " 42\n") == 1.0
    assert scored({"kind": "regex", "pattern": r"\d+"}, "it is 42") == 0.0
    assert scored({"kind": "regex", "pattern": r"\d+", "must_match": "search"}, "it is 42") == 1.0


def test_a_schema_accepts_whole_json_values_only() -> None:
    check = {"kind": "json_schema", "schema": NUMBERS}
    assert scored(check, ' {"n": 3} ') == 1.0
    for text in ('{"n": 3.5}', '{"n": 3', 'so {"n": 3}', '{"n": 3, "n": 3}', "{}", "", '{"n": NaN}'):
        assert scored(check, text) == 0.0, text


def test_a_schema_may_refer_to_its_own_definitions_and_use_patterns() -> None:
    schema = {"$defs": {"id": {"type": "string", "pattern": "^a+$"}}, "items": {"$ref": "#/$defs/id"}}
    assert scored({"kind": "json_schema", "schema": schema}, '["a", "aaa"]') == 1.0
    assert scored({"kind": "json_schema", "schema": schema}, '["a", "ab"]') == 0.0


def test_a_schema_that_refers_to_itself_without_end_scores_zero() -> None:
    assert scored({"kind": "json_schema", "schema": {"$ref": "#"}}, "1") == 0.0


def test_the_reference_is_compared_by_value_or_without_case_and_punctuation() -> None:
    check = {"kind": "reference"}
    assert scored(check, "New York.", example(reference="new york")) == 1.0
    assert scored(check, "York", example(reference="new york")) == 0.0
    assert scored(check, "so it is $1,200.00", example(reference="1200"), {"kind": "last_number"}) == 1.0
    assert scored(check, "-3", example(reference="3")) == 0.0
    assert scored(check, "no number", example(reference="3"), {"kind": "last_number"}) == 0.0
    assert scored(check, "", example(reference=None)) == 0.0


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("It's  HERE", "its here", True),
        ("well-known fact", "well known fact!", True),
        ("3.5 km", "35 km", False),
        ("-3 degrees", "3 degrees", False),
        ("1,000 men", "1000 men", True),
        ("ﬁn", "FIN", True),
        ("straße", "STRASSE", True),
        ("!", "?", False),
        ("C++", "C", False),
        ("snake_case", "snake case", True),
        ("½", "0.5", False),
        ("1e3", "1,000", True),
    ],
)
def test_answers_are_equal_when_only_their_dress_differs(left: str, right: str, same: bool) -> None:
    assert same_answer(left, right) is same
    assert same_answer(right, left) is same


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"note": "Fog, on the hill!"}', 1.0),
        (' {"note":"fog on the hill"}\n', 1.0),
        ('{"note": "fog on a hill"}', 0.0),
        ('{"note": "fog on the hill", "extra": 1}', 0.0),
        ('{"Note": "fog on the hill"}', 0.0),
        ('{"note": ["fog on the hill"]}', 0.0),
        ('{"note": "fog on the hill", "note": "fog on the hill"}', 0.0),
        ('Here: {"note": "fog on the hill"}', 0.0),
        ('{"note": "fog on the hill"} Done.', 0.0),
        ('{"note": "fog on the hill"', 0.0),
        ('[{"note": "fog on the hill"}]', 0.0),
        ("fog on the hill", 0.0),
    ],
)
def test_the_form_is_met_exactly_or_not_at_all(text: str, value: float) -> None:
    assert scored(NOTE, text) == value


def test_a_form_may_nest_and_hold_constants() -> None:
    check = {"kind": "json_equals", "form": {"a": [{"q": "Q: {prompt}", "r": "{reference}"}, True, 1, None]}}
    one = example("{reference}", "yes")  # the prompt's own braces are not filled in again
    right = {"a": [{"q": "q {reference}", "r": "YES"}, True, 1, None]}
    assert scored(check, json.dumps(right), one) == 1.0
    for constants in ([1, 1, None], [True, True, None], [True, 1, 0], [True, 1], [True, 1, None, 2]):
        wrong = {"a": [right["a"][0], *constants]}
        assert scored(check, json.dumps(wrong), one) == 0.0, constants
    assert scored(check, json.dumps(right), example("{reference}", None)) == 0.0


def test_a_check_says_whether_it_needs_references() -> None:
    assert needs_reference(CHECKS.validate_python({"kind": "reference"}))
    assert needs_reference(CHECKS.validate_python({"kind": "json_equals", "form": {"a": ["{reference}"]}}))
    assert not needs_reference(CHECKS.validate_python(NOTE))
    assert not needs_reference(CHECKS.validate_python({"kind": "regex", "pattern": "{reference}"}))


def test_a_config_that_holds_checks_survives_a_round_trip() -> None:
    class Config(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
        check: CheckSpec
        extractor: ExtractorSpec

    given = {"check": {"kind": "json_schema", "schema": NUMBERS}, "extractor": {"kind": "tag", "tag": "a"}}
    config = Config.model_validate(given)
    assert Config.model_validate(config.model_dump(exclude_none=True)) == config
    assert Config.model_validate_json(config.model_dump_json()) == config


SLOW = "(a|aa|ab)+$"
HOSTILE = "a" * 60 + "!"


@pytest.mark.parametrize(
    ("check", "extractor"),
    [
        ({"kind": "regex", "pattern": SLOW, "must_match": "search"}, {}),
        ({"kind": "json_schema", "schema": {"items": {"pattern": SLOW}}}, {}),
        ({"kind": "regex", "pattern": ".*"}, {"kind": "regex", "pattern": SLOW}),
    ],
)
def test_a_pattern_that_backtracks_without_end_is_cut_off(check: dict[str, Any], extractor: dict[str, str]) -> None:
    began = time.process_time()
    text = json.dumps([HOSTILE]) if check["kind"] == "json_schema" else HOSTILE
    assert scored(check, text, extractor=extractor) == 0.0
    assert time.process_time() - began < 5  # without the limit: hours


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "{" * 100_000, "1" * 100_000, '{"note": ' + "9" * 6_000 + "}", "\ud800", "\0"],
)
def test_hostile_text_scores_zero_and_raises_nothing(text: str) -> None:
    one = example(reference="x")
    for check in (NOTE, {"kind": "json_schema", "schema": NUMBERS}, {"kind": "reference"}):
        for extractor in ({}, {"kind": "json_path", "path": "a"}, {"kind": "last_number"}):
            assert scored(check, text, one, extractor) == 0.0


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80) | st.from_regex(r'\{"note": .{0,20}\}', fullmatch=True))
def test_any_text_gets_a_score_between_zero_and_one(text: str) -> None:
    for check in (NOTE, {"kind": "reference"}, {"kind": "regex", "pattern": ".+"}):
        assert 0.0 <= scored(check, text, example(reference="x")) <= 1.0


def test_only_the_end_of_a_very_long_text_is_read() -> None:
    assert extract(ExtractorSpec(kind="last_number"), "5" + " " * 20_000) is None
    assert extract(ExtractorSpec(kind="last_number"), "x" * 10**6 + " 5") == "5"


def test_the_schema_library_is_loaded_only_when_a_schema_is_used() -> None:
    code = "import sys, opd_core.extractor; sys.exit('jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
