"""report.html of committed records in headless Chromium. Skipped where there is no Chromium with its driver."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.ledger import Ledger
from bench.report.html import html_page
from bench.report.rows import rows_of
from bench.report.write import ROOT

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
except ImportError:  # an environment that was made before it was asked for
    webdriver = None

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(webdriver is None, reason="selenium is not installed; make the environment anew with `make venv`"),
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no Chromium with its driver; on Debian: apt-get install chromium chromium-driver"
    ),
]

PHONE = (390, 844)
DESKTOP = (1280, 900)
RECORD = "record-mini/cifar100/A_dual/seed0-6beabeb0"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the committed records of one profile, alone in a folder: whatever else it asked for would be missing."""
    records = [(path, record) for path, record in Ledger(ROOT / "results").records() if record["run"]["profile"] == "mini"]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_page(records, ROOT / "results"))
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[webdriver.Chrome]":
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if os.geteuid() == 0:  # Chromium's sandbox does not work for root, as in most containers
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: "webdriver.Chrome", page: str) -> "webdriver.Chrome":
    """The page, newly loaded, on a desktop, light."""
    return opened(chromium, page)


def opened(browser: "webdriver.Chrome", page: str, *, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> "webdriver.Chrome":
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(page)
    return browser


def column(browser: "webdriver.Chrome", name: str) -> list[str]:
    """The cells of the shown lines of the first table."""
    return list(
        browser.execute_script(
            """
            const table = document.querySelector("table");
            const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
            return [...table.tBodies[0].rows].filter((row) => row.offsetParent).map((row) => row.cells[at].textContent);
            """,
            name,
        )
    )


def test_a_column_is_sorted_by_its_button_and_by_the_keyboard(browser: "webdriver.Chrome") -> None:
    head = next(cell for cell in browser.find_elements(By.CSS_SELECTOR, "table th") if cell.text.startswith("ours"))
    before = column(browser, "ours")
    head.find_element(By.TAG_NAME, "button").click()
    values = [float(cell.split()[0]) for cell in column(browser, "ours")]
    assert values == sorted(values) and head.get_attribute("aria-sort") == "ascending"
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    values = [float(cell.split()[0]) for cell in column(browser, "ours")]
    assert values == sorted(values, reverse=True) and head.get_attribute("aria-sort") == "descending"
    assert sorted(column(browser, "ours")) == sorted(before) != column(browser, "ours")
    assert len(browser.find_elements(By.CSS_SELECTOR, "table:first-of-type th[aria-sort]")) >= 1


def test_numbers_are_sorted_by_size_and_names_by_letter_with_the_empty_last(browser: "webdriver.Chrome") -> None:
    heads = {
        cell.text.split()[0]: cell for cell in browser.find_elements(By.CSS_SELECTOR, "section:nth-of-type(2) .scroll th")[:14]
    }
    browser.execute_script("arguments[0].querySelector('button').click()", heads["parameters"])
    values = [int(cell.replace(",", "")) for cell in column(browser, "parameters")]
    assert values == sorted(values)
    browser.execute_script("arguments[0].querySelector('button').click()", heads["experiment"])
    assert column(browser, "experiment")[0] == "cifar100/A_dual"
    study = next(cell for cell in browser.find_elements(By.CSS_SELECTOR, "th") if cell.text.startswith("study"))
    for _ in range(2):
        browser.execute_script("arguments[0].querySelector('button').click()", study)
        cells = column(browser, "study")
        empty = [cell == "" or not cell[0].isdigit() for cell in cells]
        assert empty == sorted(empty) and any(empty) and not all(empty)


def test_a_filter_leaves_the_lines_with_all_its_words_and_their_curves(browser: "webdriver.Chrome") -> None:
    expected = [row for row in rows_of("mini", Ledger(ROOT / "results").records())[0] if "fashion_mnist/B" in row.experiment.name]
    curves = len(browser.find_elements(By.CSS_SELECTOR, ".chart[data-profile] path.series"))
    field = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    field.send_keys("mhsa Fashion_MNIST/b")
    assert column(browser, "experiment") == [row.experiment.name for row in expected]
    status = browser.find_element(By.CSS_SELECTOR, ".tools [role=status]").text
    assert status.startswith(f"{len(expected)} of ")
    left = len(browser.find_elements(By.CSS_SELECTOR, ".chart[data-profile] path.series"))
    assert left == sum(len(row.found) for row in expected) < curves
    field.send_keys(" nothing")
    assert column(browser, "experiment") == []
    assert "Nothing to draw" in browser.find_element(By.CSS_SELECTOR, ".chart output").text


def test_a_pointer_and_the_arrow_keys_read_values(browser: "webdriver.Chrome") -> None:
    browser.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("cifar100/A_dual")
    picture = browser.find_element(By.CSS_SELECTOR, ".chart svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    ActionChains(browser).move_to_element_with_offset(picture, picture.size["width"] // 2 - 20, -180).perform()
    output = browser.find_element(By.CSS_SELECTOR, ".chart output")
    seed = max(range(3), key=lambda seed: accuracies(seed)[3])
    assert output.text == f"cifar100/A_dual, seed {seed}, epoch 4: {accuracies(seed)[3]:.2f}"
    picture.send_keys(Keys.ARROW_LEFT)
    assert output.text == f"cifar100/A_dual, seed {seed}, epoch 3: {accuracies(seed)[2]:.2f}"
    picture.send_keys(Keys.ARROW_UP)
    above = (seed - 1) % 3  # from the first line to the last
    assert output.text == f"cifar100/A_dual, seed {above}, epoch 3: {accuracies(above)[2]:.2f}"


def accuracies(seed: int) -> list[float]:
    """Test accuracy in percent after each epoch, as the committed record of A_dual has it."""
    key = {"profile": "mini", "experiment": "cifar100/A_dual", "seed": seed}
    (record,) = (its for _, its in Ledger(ROOT / "results").records() if key.items() <= its["run"].items())
    tests = [epoch["test"] for epoch in record["results"]["epochs"]]
    return [100 * test["correct"] / test["images"] for test in tests]


def test_a_number_leads_to_its_row_and_on_to_its_record(browser: "webdriver.Chrome") -> None:
    row = next(line for line in browser.find_elements(By.CSS_SELECTOR, "tbody tr") if line.text.startswith("cifar100/A_dual"))
    browser.execute_script("arguments[0].click()", row.find_elements(By.TAG_NAME, "td")[1].find_element(By.TAG_NAME, "a"))
    runs = browser.find_element(By.CSS_SELECTOR, "details:target")
    assert (
        runs.get_attribute("open")
        and f"{max(accuracies(0)):.2f}" in runs.text
        and runs.find_elements(By.CSS_SELECTOR, "path.series")
    )
    browser.execute_script("arguments[0].click()", runs.find_element(By.CSS_SELECTOR, f"a[href='#{RECORD}']"))
    record = browser.find_element(By.CSS_SELECTOR, "details:target")
    assert record.get_attribute("id") == RECORD and record.is_displayed()
    assert f"{max(accuracies(0)):g}" in record.text, "the accuracy at full precision"
    for name in ("configuration", "experiment", "recipe"):
        next(part for part in record.find_elements(By.TAG_NAME, "summary") if part.text == name).click()
    assert "backbone_lr" in record.text and "0.0001" in record.text


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_error_no_sideways_scrolling_and_ink_that_shows(
    chromium: "webdriver.Chrome", page: str, size: tuple[int, int], scheme: str
) -> None:
    browser = opened(chromium, page, size=size, scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    width, shown = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= shown <= size[0]
    ink, paper = (browser.execute_script(f"return getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    light = (luminance(paper), luminance(ink))
    assert light[0] > 0.9 if scheme == "light" else light[0] < 0.05
    assert (max(light) + 0.05) / (min(light) + 0.05) > 7, "contrast, WCAG's level AAA"
    assert browser.get_log("browser") == []


def luminance(colour: str) -> float:
    """WCAG's relative luminance of ``rgb(r, g, b)``."""
    channels = [int(word) / 255 for word in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_nothing_is_fetched(browser: "webdriver.Chrome") -> None:
    assert browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)") == []


def test_tables_are_there_without_javascript(chromium: "webdriver.Chrome", page: str) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser = opened(chromium, page)
        assert len(browser.find_elements(By.CSS_SELECTOR, "section:nth-of-type(2) table:first-of-type tbody tr")) > 30
        assert not browser.find_elements(By.CSS_SELECTOR, "th button")
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_every_link_within_the_page_has_its_place(browser: "webdriver.Chrome") -> None:
    lost = browser.execute_script(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map((a) => decodeURIComponent(a.hash.slice(1)))"
        ".filter((name) => !document.getElementById(name))"
    )
    assert lost == []


def test_pictures_share_no_names(browser: "webdriver.Chrome") -> None:
    names = browser.execute_script("return [...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(set(names)) == len(names) > 100
    assert Path(ROOT / "results/figures/architecture.svg").is_file()
    assert browser.find_elements(By.CSS_SELECTOR, "figure svg[role=img]")
