"""Pictures inside of a page: many SVG files in one document."""

import re
from html import escape

_LETTER = "DejaVu"  # begins the name of a letter's shape, which is the same in every picture
_SHAPE = re.compile(rf'<path id="({_LETTER}[^"]*)"[^>]*/>', re.DOTALL)


def inlined(svg: str, prefix: str, title: str, letters: set[str]) -> str:
    """Return the picture alone, with names that no other picture of the page has, and as large as the page wants it.

    Its style sheet is left out, because it would hold for the page: the page has the same rule for pictures. So are indentation
    and the line ends in path data, a tenth of its size: letters are paths, so that no space shows.

    Args:
        letters: the names of those whose shapes earlier pictures of the page hold, and this one need not; its own are added.
    """
    start = svg.find("<svg")
    picture = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<title>.*?</title>", "", svg[max(0, start) :], flags=re.DOTALL)
    picture = _SHAPE.sub(lambda shape: "" if shape[1] in letters else shape[0], picture)
    letters.update(_SHAPE.findall(picture))
    picture = re.sub(rf'\bid="(?!{_LETTER})', f'id="{prefix}', picture)
    picture = re.sub(rf'href="#(?!{_LETTER})', f'href="#{prefix}', picture)
    picture = re.sub(r"url\(#", f"url(#{prefix}", picture)
    picture = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", picture, count=1)
    picture = re.sub(r">\s+<", "><", picture)
    picture = re.sub(r' ?\n(?=[A-Za-z"])', "", picture)
    return picture.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
