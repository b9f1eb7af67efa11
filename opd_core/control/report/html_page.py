"""A report as one HTML page that loads nothing: no script, no picture, no font from anywhere else.

Every text is escaped, and the page's own policy forbids the browser to load or run anything even if one were not.
"""

from __future__ import annotations

import html

from opd_core.control.report.chart import svg
from opd_core.control.report.content import Block, Chart, Code, Facts, Items, Paragraph, Report, SideBySide, Table
from opd_core.types import clean_text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #ccc}
table{border-collapse:collapse;width:100%;margin:.6rem 0}th,td{text-align:left;vertical-align:top;padding:.25rem .6rem;
border-bottom:1px solid #e5e5e5;overflow-wrap:anywhere}th{font-weight:600}
pre{background:#f5f5f5;padding:.6rem;white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
figure{margin:1rem 0}svg{width:100%;height:auto}svg .t{font:600 13px sans-serif}svg .l{font:11px sans-serif;fill:#444}
svg .g{stroke:#ddd}.s{display:flex;flex-wrap:wrap;gap:.6rem;margin:.6rem 0}.s>div{flex:1 1 260px;min-width:0}
.p{flex-basis:100%!important}.h{font-size:.85rem;color:#555}
@media (prefers-color-scheme:dark){body{background:#161616;color:#e8e8e8}pre{background:#242424}
svg .t{fill:#e8e8e8}svg .l{fill:#bbb}svg .g{stroke:#333}th,td{border-color:#333}.h{color:#aaa}}
"""


def html_page(report: Report) -> str:
    """The whole page."""
    body = [f"<h1>{_text(report.title)}</h1>", f"<p>{_text(report.summary)}</p>"]
    for section in report.sections:
        body.append(f"<h2>{_text(section.title)}</h2>")
        body += [_block(block) for block in section.blocks]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(POLICY)}">'
        '<meta name="referrer" content="no-referrer"><meta name="viewport" content="width=device-width">'
        f"<title>{_text(report.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _text(text: str) -> str:
    """Text as HTML shows it: nothing of it a tag, an entity or a character that steers."""
    return html.escape(clean_text(text, len(text)))


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return f"<p>{_text(block.text)}</p>"
        case Items():
            return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block.items) + "</ul>"
        case Facts():
            rows = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in block.rows)
            return f"<table>{''.join(rows)}</table>"
        case Table():
            head = "".join(f"<th>{_text(name)}</th>" for name in block.header)
            rows = ("".join(f"<td>{_text(cell)}</td>" for cell in row) for row in block.rows)
            return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
        case Chart():
            return f"<figure>{svg(block)}</figure>"
        case Code():
            return f"<pre>{_text(block.text)}</pre>"
        case SideBySide():
            return _side_by_side(block)


def _side_by_side(block: SideBySide) -> str:
    parts = [f'<div class="p"><div class="h">prompt</div><pre>{_text(block.prompt)}</pre></div>']
    parts += [f'<div><div class="h">{_text(name)}</div><pre>{_text(text)}</pre></div>' for name, text in block.answers]
    return f'<div class="s">{"".join(parts)}</div>'
