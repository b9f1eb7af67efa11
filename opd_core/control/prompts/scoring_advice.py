"""Which check and extractor fit a prompt file, judged by what its references and completions look like."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd_core.extractor import ExtractorSpec, ReferenceCheck, score
from opd_core.matching import NUMBER
from opd_core.prompt_records import PromptExample

MAX_LOOKED_AT = 500
LONG_REFERENCE_CHARACTERS = 120
"""Longer references are explanations rather than final answers: two right ones are hardly ever equal."""
GOOD_SHARE = 0.9
_TAG = re.compile(r"<([A-Za-z][A-Za-z0-9_-]{0,40})>[^<]{0,2000}</\1>")
_HASHES = r"####\s*([^\n]+)"


@dataclass(frozen=True)
class ScoringAdvice:
    """What to give as `check` and `extractor` (plain data; None: leave it out), and why."""

    check: dict[str, Any] | None
    extractor: dict[str, Any] | None
    why: str


def advise_scoring(examples: Sequence[PromptExample]) -> ScoringAdvice:
    """Advice for the prompts of a file, by the first 500 of those that have a reference."""
    all_known = [example for example in examples if example.reference is not None]
    known = all_known[:MAX_LOOKED_AT]
    if not known:
        return ScoringAdvice(
            None,
            None,
            "No line has a reference, so equality cannot be scored. Give a check of kind regex or json_schema if a "
            "right answer has a known form; without one a local teacher's run is judged by held-out reverse KL.",
        )
    references = [example.reference or "" for example in known]
    if statistics.median(map(len, references)) > LONG_REFERENCE_CHARACTERS:
        return ScoringAdvice(
            None,
            None,
            f"The references are long texts (median {statistics.median(map(len, references)):.0f} characters), which a "
            "right answer would hardly ever equal. Put only the final answer into reference, or use a regex or "
            "json_schema check.",
        )
    missing = len(examples) - len(all_known)
    gap = f" {missing} of {len(examples)} prompts have no reference; a held-out one without it refuses the check."
    extractor, reason = _extractor(known, references)
    return ScoringAdvice(
        {"kind": "reference"}, None if extractor is None else _plain(extractor), reason + (gap if missing else "")
    )


def _extractor(known: Sequence[PromptExample], references: Sequence[str]) -> tuple[ExtractorSpec | None, str]:
    """The first extractor that finds the reference in the file's own completions, else one by the references' looks."""
    numeric = sum(NUMBER.fullmatch(text.strip()) is not None for text in references) / len(references)
    candidates: list[ExtractorSpec | None] = [None]
    candidates += [ExtractorSpec(kind="tag", tag=tag) for tag in _tags(known)]
    candidates += [ExtractorSpec(kind="regex", pattern=_HASHES)]
    candidates += [ExtractorSpec(kind="last_number")] if numeric >= GOOD_SHARE else []
    answered = [example for example in known if example.completion is not None]
    for candidate in candidates if answered else []:
        right = sum(
            score(ReferenceCheck(kind="reference"), example.completion or "", example, candidate or ExtractorSpec())
            for example in answered
        )
        if right >= GOOD_SHARE * len(answered):
            how = "taken as it is" if candidate is None else f"found by the extractor {candidate.kind}"
            return candidate, (
                f"The final answer, {how}, equals the reference in {right:.0f} of {len(answered)} completions of the "
                "file."
            )
    if numeric >= GOOD_SHARE:
        return ExtractorSpec(
            kind="last_number"
        ), "The references are numbers; the last number of an answer is compared."
    return None, "The references are short texts; an answer is compared as a whole, case and punctuation aside."


def _tags(known: Sequence[PromptExample]) -> list[str]:
    """Tags that most completions have, most frequent first; at most three."""
    texts = [example.completion for example in known if example.completion is not None]
    counts = Counter(tag for text in texts for tag in set(_TAG.findall(text[-4000:])))
    return [tag for tag, count in counts.most_common(3) if count >= GOOD_SHARE * len(texts)]


def _plain(extractor: ExtractorSpec) -> dict[str, Any]:
    return extractor.model_dump(mode="json", exclude_none=True)
