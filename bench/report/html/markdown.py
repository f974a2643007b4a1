"""The report's Markdown as HTML: the constructs that :mod:`bench.report` writes, and no others. Everything else is escaped."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from bench.report.cells import Line, used_columns

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>.+?)\*\*"
    r"|(?<!\w)\*(?P<em>[^*\s][^*]*)\*(?!\w)"
    r"|\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])+)\]\((?P<address>(?:#|[\w.-]+/|\./)[^()\s]*)\)",
    re.DOTALL,
)
_BETWEEN_CELLS = re.compile(r"(?<!\\)\|")
FILTERED = 6  # a table of fewer lines is seen at a glance


def inline(text: str) -> str:
    """Code, emphasis, and links to places in the page or files beside it."""
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts += [escape(text[end : match.start()], quote=False), _span(match)]
        end = match.end()
    return "".join([*parts, escape(text[end:], quote=False)])


def _span(match: re.Match[str]) -> str:
    if match["code"]:
        return f"<code>{escape(match['code'], quote=False)}</code>"
    if match["address"]:
        return f'<a href="{escape(match["address"])}">{inline(match["text"])}</a>'
    tag = "strong" if match["strong"] else "em"
    return f"<{tag}>{inline(match[tag])}</{tag}>"


def table(lines: Sequence[Line], caption: str) -> str:
    """A table whose cells are Markdown; columns without any content are left out. Its script sorts and filters it.

    Args:
        caption: what it shows, for those who do not see the heading above.
    """
    columns = used_columns(lines)
    if not columns:
        return "<p>None.</p>"
    head = "".join(f'<th scope="col">{inline(column)}</th>' for column in columns)
    rows = "\n".join(f"<tr>{''.join(_cell(line[column]) for column in columns)}</tr>" for line in lines)
    kind = "sortable filtered" if len(lines) >= FILTERED else "sortable"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table class="{kind}">\n'
        f"<caption>{inline(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _cell(value: object) -> str:
    return f"<td>{inline(str(value))}</td>"


def blocks(markdown: str) -> str:
    """Headings, paragraphs, lists, tables and indented code, separated by empty lines; headings get the names that links use."""
    return "\n".join(_blocks(markdown))


def _blocks(markdown: str) -> Iterator[str]:
    title = ""
    for full, group in groupby(markdown.split("\n"), key=lambda line: bool(line.strip())):
        lines = list(group)
        if not full:
            continue
        if lines[0].startswith("#"):
            marks, _, title = lines[0].partition(" ")
            yield heading(title, len(marks))
            lines = lines[1:]
        yield from _body(lines, title)


def _body(lines: Sequence[str], title: str) -> Iterator[str]:
    if not lines:
        return
    if lines[0].startswith("|"):
        head, _, *rows = ([cell.strip().replace("\\|", "|") for cell in _BETWEEN_CELLS.split(line.strip()[1:-1])] for line in lines)
        yield table([dict(zip(head, row + [""] * len(head), strict=False)) for row in rows], title)
    elif lines[0].startswith("    "):
        yield f"<pre><code>{escape(chr(10).join(line[4:] for line in lines), quote=False)}</code></pre>"
    else:
        first = next((i for i, line in enumerate(lines) if line.startswith("- ")), len(lines))
        if first:
            yield f"<p>{inline(chr(10).join(lines[:first]))}</p>"
        items = "\n".join(lines[first:]).removeprefix("- ").split("\n- ") if first < len(lines) else []
        yield from [f"<ul>\n{''.join(f'<li>{inline(item)}</li>{chr(10)}' for item in items)}</ul>"] if items else []


def heading(title: str, level: int) -> str:
    """A heading with the name that a Markdown viewer gives it."""
    name = title.lower().replace(" ", "-").replace("`", "")
    return f'<h{level} id="{escape(name)}">{inline(title)}</h{level}>'
