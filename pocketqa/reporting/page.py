"""One HTML page out of RESULTS.md and its figures: without scripts, fonts or files from elsewhere, in light and dark, on screen and on paper.

It reads the Markdown that this project's tables write, and no other: headings, paragraphs, lists, tables, code, links.  All text is escaped.
"""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Sequence

from pocketqa.reporting.figures import Picture

_CELL = re.compile(r"(?<!\\)\|")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_SAFE_LINK = re.compile(r"(https?://|(?!/)[\w./+-]+$)")  # what a run file or a page lies at; no "javascript:", nothing from the root of a disk

STYLE = """
:root {
  color-scheme: light dark; --ink: light-dark(#1b1b1b, #e8e8e8); --paper: light-dark(#fff, #16181c); --line: light-dark(#c8c8c8, #4a4f57);
  --stripe: light-dark(#f4f5f7, #1e2126); --link: light-dark(#00538a, #7cc0f2);
}
body {
  margin: 0 auto; padding: 1rem 1.5rem 4rem; max-width: 90rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
}
p, li { max-width: 50rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
a { color: var(--link); }
nav ul { columns: 16rem; padding-left: 1.2rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top; }
thead th, tbody tr:nth-child(even) { background: var(--stripe); }
td:last-child { min-width: 14rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
figcaption { max-width: 50rem; font-size: .9rem; }
@media print {
  body { max-width: none; font-size: 9pt; }
  .scroll { overflow: visible; }
  table { font-size: 7pt; }
  figure, tr { break-inside: avoid; }
}
"""
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>PocketQA: {title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def html_page(markdown: str, pictures: Sequence[Picture]) -> str:
    """The page; each figure stands below the heading of its section, embedded.  Figures of a section that is not there come last."""
    sections = re.split(r"^## ", markdown, flags=re.MULTILINE)
    titles = [section.partition("\n")[0] for section in sections[1:]]
    title = sections[0].strip().partition("\n")[0].removeprefix("# ")
    body = [_blocks(sections[0]), _contents(titles)]
    for name, section in zip(titles, sections[1:], strict=True):
        shown = "".join(_figure(picture) for picture in pictures if picture.section == name)
        body.append(f'<section id="{_anchor(name)}">\n<h2>{_inline(name)}</h2>\n{shown}{_blocks(section.partition(chr(10))[2])}</section>\n')
    body += [_figure(picture) for picture in pictures if picture.section not in titles]
    return PAGE.format(title=html.escape(title), style=STYLE, body="".join(body))


def _blocks(markdown: str) -> str:
    """Blocks are what empty lines part."""
    return "".join(_block(block.split("\n")) for block in re.split(r"\n\s*\n", markdown.strip()) if block.strip())


def _block(lines: Sequence[str]) -> str:
    first = lines[0]
    if first.startswith("# "):
        return f"<h1>{_inline(first[2:])}</h1>\n"
    if first.startswith("### "):
        return f"<h3>{_inline(first[4:])}</h3>\n"
    if first.startswith("| "):
        return _table(lines)
    if first.startswith("- "):
        return "<ul>\n" + "".join(f"<li>{_inline(line[2:])}</li>\n" for line in lines) + "</ul>\n"
    return f"<p>{_inline(' '.join(lines))}</p>\n"


def _table(lines: Sequence[str]) -> str:
    head, _, *rows = ([cell.strip() for cell in _CELL.split(line.strip())[1:-1]] for line in lines)
    columns = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{_inline(row[0])}</th>{"".join(f"<td>{_inline(cell)}</td>" for cell in row[1:])}</tr>\n' for row in rows if row
    )
    label = html.escape(f"table: {', '.join(filter(None, head))}")
    table = f"<table>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n{table}\n</div>\n'


def _inline(text: str) -> str:
    """Text with its code and links.  An odd number of backticks is text."""
    parts = text.replace("\\|", "|").split("`")
    if len(parts) % 2 == 0:
        return _links("`".join(parts))
    return "".join(f"<code>{html.escape(part)}</code>" if i % 2 else _links(part) for i, part in enumerate(parts))


def _links(text: str) -> str:
    found, at = [], 0
    for match in _LINK.finditer(text):
        words, target = match.groups()
        linked = f'<a href="{html.escape(target)}">{html.escape(words)}</a>' if _SAFE_LINK.match(target) else html.escape(words)
        found += [html.escape(text[at : match.start()]), linked]
        at = match.end()
    return "".join([*found, html.escape(text[at:])])


def _contents(titles: Sequence[str]) -> str:
    items = "".join(f'<li><a href="#{_anchor(title)}">{_inline(title)}</a></li>\n' for title in titles)
    return f'<nav aria-label="Sections">\n<ul>\n{items}</ul>\n</nav>\n' if titles else ""


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _figure(picture: Picture) -> str:
    width, height = struct.unpack(">II", picture.png[16:24])  # of the header of a PNG
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode('ascii')}"
    image = f'<img src="{source}" alt="{html.escape(picture.alt)}" width="{width}" height="{height}">'
    return f"<figure>\n{image}\n<figcaption>{_inline(picture.caption)} ({html.escape(picture.name)}.png)</figcaption>\n</figure>\n"
