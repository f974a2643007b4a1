"""Pictures inside of a page: many SVG files in one document."""

import re
from html import escape


def inlined(svg: str, prefix: str, title: str) -> str:
    """Return the picture alone, with names that no other picture of the page has, and as large as the page wants it.

    Its style sheet is left out, because it would hold for the page: the page has the same rule for pictures. So are indentation
    and the line ends in path data, a tenth of its size: letters are paths, so that no space shows.
    """
    start = svg.find("<svg")
    picture = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<title>.*?</title>", "", svg[max(0, start) :], flags=re.DOTALL)
    picture = re.sub(r'\bid="', f'id="{prefix}', picture)
    picture = re.sub(r'href="#', f'href="#{prefix}', picture)
    picture = re.sub(r"url\(#", f"url(#{prefix}", picture)
    picture = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", picture, count=1)
    picture = re.sub(r">\s+<", "><", picture)
    picture = re.sub(r' ?\n(?=[A-Za-z"])', "", picture)
    return picture.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
