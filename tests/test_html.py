"""report.html: the same bytes for the same ledger, everything in it, nothing fetched, nothing of a record taken for HTML."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from bench.environment import ROOT
from bench.ledger import Ledger
from bench.report.html import html_page, markdown
from bench.report.html.svg import inlined
from tests.figure_ledger import add, filled, record_of

MOST = 2 * 10**6  # bytes of the committed page


class Reader(HTMLParser):
    """Names, links and elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("href", "src", "xlink:href") if name in values]
        if tag not in ("meta", "link", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return filled(tmp_path)


def page_of(ledger: Ledger) -> str:
    return html_page(list(ledger.records()), ledger.results)


def embedded(page: str) -> dict[str, list[dict[str, object]]]:
    return dict(json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]))


def test_the_same_ledger_gives_the_same_bytes(ledger: Ledger) -> None:
    assert page_of(ledger) == page_of(ledger)


def test_every_record_is_inside_and_every_row_has_its_records(ledger: Ledger) -> None:
    data, found = embedded(page_of(ledger)), list(ledger.records())
    assert [entry["record"] for entry in data["records"]] == [record for _, record in found]
    assert sorted(index for row in data["rows"] for index in row["records"]) == list(range(len(found)))  # type: ignore[attr-defined]


def test_elements_nest_names_are_unique_and_links_within_the_page_arrive(ledger: Ledger) -> None:
    reader = Reader(page_of(ledger))
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
    within = [unquote(link[1:]) for link in reader.links if link.startswith("#")]
    assert set(within) <= set(reader.ids)
    assert {name for name in reader.ids if name.startswith(("record-", "row-"))} <= set(within), "each record can be reached"


def test_links_that_leave_the_page_lead_to_records(ledger: Ledger) -> None:
    outside = [link for link in Reader(page_of(ledger)).links if not link.startswith("#") and link != "data:,"]
    assert sorted(ledger.results / link for link in outside) == [path for path, _ in ledger.records()]


def test_the_policy_lets_one_script_run_and_nothing_be_fetched(ledger: Ledger) -> None:
    page = page_of(ledger)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy == [f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"]
    assert page.count("<script") == 2 and "@import" not in page and "fetch(" not in page


def test_text_of_a_record_is_no_html(tmp_path: Path) -> None:
    ledger, hostile = Ledger(tmp_path), "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    record = record_of("cifar100/baseline", device=hostile)
    record["results"]["status"], record["results"]["error"] = "failed", f"[a](javascript:alert(3)) {hostile}"
    add(ledger, record)
    reader = Reader(page_of(ledger))
    assert reader.tags.count("script") == 2 and "img" not in reader.tags
    assert not [link for link in reader.links if "alert" in link]
    assert embedded(page_of(ledger))["records"][0]["record"] == json.loads(json.dumps(record))


def test_a_ledger_without_records_has_a_page(tmp_path: Path) -> None:
    page = page_of(Ledger(tmp_path))
    assert "Nothing was run yet" in page and Reader(page).open == []


def test_smoke_judges_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(ledger, record_of("cifar100/A_dual", profile="smoke"))
    page = page_of(ledger)
    assert "Not judged: this profile shows that everything works" in page and Reader(page).open == []


def test_the_committed_page_is_what_the_committed_ledger_gives() -> None:
    page = (ROOT / "results/report.html").read_text()
    assert page == page_of(Ledger(ROOT / "results")), "run `make report`"
    assert len(page.encode()) < MOST
    reader = Reader(page)
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids), "pictures included"
    assert {unquote(link[1:]) for link in reader.links if link.startswith("#")} <= set(reader.ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("`A<B` − *not* **so**", "<code>A&lt;B</code> − <em>not</em> <strong>so</strong>"),
        ("[-0.05 [+0.01]](#row-a%20b)", '<a href="#row-a%20b">-0.05 [+0.01]</a>'),
        ("[`mini`](#profile-mini)", '<a href="#profile-mini"><code>mini</code></a>'),
        ("[x](javascript:alert)", "[x](javascript:alert)"),
        ("[x](https://host/)", "[x](https://host/)"),
        ("2 * 3 * 4, snake_case", "2 * 3 * 4, snake_case"),
    ],
)
def test_inline_markdown(text: str, expected: str) -> None:
    assert markdown.inline(text) == expected


def test_blocks_of_markdown() -> None:
    text = "## A `b`\n\nOne\ntwo.\n\n- x\n  more\n- y\n\n    code <\n\n| a |   |\n|---|---|\n| 1 | `2` |\n"
    html = markdown.blocks(text)
    assert html.startswith('<h2 id="a-b">A <code>b</code></h2>\n<p>One\ntwo.</p>\n<ul>\n<li>x\n  more</li>\n<li>y</li>\n</ul>\n')
    assert "<pre><code>code &lt;</code></pre>" in html
    assert '<th scope="col">a</th><th scope="col"></th>' in html and "<td>1</td><td><code>2</code></td>" in html


def test_a_picture_within_a_page_keeps_to_itself() -> None:
    svg = (
        '<?xml version="1.0"?>\n<svg xmlns="s" width="6pt" height="2pt" viewBox="0 0 6 2"><title>t</title><metadata><a/></metadata>'
        '<defs>\n <style type="text/css">*{x: y}</style>\n <path id="p" d="M 0 1 \nL 2 3 \n"/></defs>'
        '<use xlink:href="#p" clip-path="url(#c)"/></svg>'
    )
    assert inlined(svg, "f1-", 'A "b"', set()) == (
        '<svg role="img" aria-label="A &quot;b&quot;" xmlns="s" viewBox="0 0 6 2"><defs><path id="f1-p" d="M 0 1L 2 3"/></defs>'
        '<use xlink:href="#f1-p" clip-path="url(#f1-c)"/></svg>'
    )


def test_pictures_share_the_shapes_of_their_letters() -> None:
    def picture(*letters: str) -> str:
        shapes = "".join(f'<path id="DejaVuSans-{letter}" d="M 0 {letter}"/>' for letter in letters)
        return f'<svg><defs>{shapes}</defs>{"".join(f"""<use xlink:href="#DejaVuSans-{letter}"/>""" for letter in letters)}</svg>'

    known: set[str] = set()
    first, second = (inlined(picture(*letters), f"f{number}-", "t", known) for number, letters in enumerate(("41", "14")))
    assert [text.count("<path") for text in (first, second)] == [2, 0]
    assert second.count('href="#DejaVuSans-1"') == second.count('href="#DejaVuSans-4"') == 1
    assert inlined(picture("1", "7"), "f2-", "t", known).count("<path") == 1
    assert known == {"DejaVuSans-1", "DejaVuSans-4", "DejaVuSans-7"}
