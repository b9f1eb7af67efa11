"""A written report as a test looks at it."""

from __future__ import annotations

from html.parser import HTMLParser

from opd_core.control.evidence import RunEvidence
from opd_core.control.report.writing import WrittenReport, write_report
from opd_core.paths import HomePaths

VOID = {"meta", "line", "polyline", "circle", "rect", "br", "img"}


class Page(HTMLParser):
    """Every tag with its attributes, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(evidence: RunEvidence, home: HomePaths) -> tuple[str, str, WrittenReport]:
    done = write_report(evidence, home)
    return done.html.path.read_text(encoding="utf-8"), done.markdown.path.read_text(encoding="utf-8"), done
