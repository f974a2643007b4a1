"""What lies around the records is examined too: stray files, the report, the data."""

import os
from pathlib import Path
from typing import Any

import pytest

from bench import errors
from bench.ledger import Ledger
from bench.report.write import BEGIN, END
from bench.verify.surroundings import check_data, check_folder, check_report
from data import sources
from data.prepare import from_folders
from tests.data.fakes import binary_files, small_cifar100, source_of, write_files
from tests.records import lines, run_of, sound_ledger

RUN = run_of("cifar100/A_dual")
PLAIN = Path(f"{RUN.key}.json")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return sound_ledger(tmp_path / "results", [RUN])


@pytest.mark.parametrize("name", [".seed0-12345678.json.k2x", "notes.txt", "seed0-12345678.json~", "link"])
def test_stray_files_are_found(ledger: Ledger, name: str) -> None:
    stray = (ledger.folder / PLAIN).with_name(name)
    stray.write_text("") if name != "link" else stray.symlink_to("nowhere")
    (line,) = lines(check_folder(ledger))
    assert line.startswith(f"{stray}: name: expected a record (.json), found a file of another kind; delete it")
    assert check_folder(ledger).problems == 1


def test_stray_files_are_looked_for_in_every_folder(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(errors.UserError, match="cannot be searched"):
        check_folder(ledger)


def test_a_report_of_something_else_is_found(ledger: Ledger) -> None:
    page = ledger.results / "RESULTS.md"
    text = page.read_text()
    number = next(i for i, line in enumerate(text.split("\n"), 1) if "36.23" in line)
    page.write_text(text.replace("36.23", "76.23", 1))
    (line,) = lines(check_report(ledger))
    assert line.startswith(f"RESULTS.md: line {number}: expected ") and "36.23" in line and "76.23" in line
    assert line.endswith("; run `make report`")
    page.write_text(text + "\nAnd they lived happily ever after.")
    (line,) = lines(check_report(ledger))
    assert line.endswith(": expected '(end of file)', found 'And they lived happily ever after.'; run `make report`")


@pytest.mark.parametrize("name", ["RESULTS.md", "results.csv", "results.json", "report.html"])
def test_a_ledger_without_a_report_is_a_note(ledger: Ledger, name: str) -> None:
    (ledger.results / name).unlink()
    assert lines(check_report(ledger)) == [f"note: {name}: all: expected a report, found none; run `make report`"]


def test_tables_for_other_programs_are_checked(ledger: Ledger) -> None:
    path = ledger.results / "results.csv"
    path.write_text(path.read_text().replace("36.225", "99.225"))
    (line,) = lines(check_report(ledger))
    assert line.startswith("results.csv: line 2: expected ") and "36.225" in line and "99.225" in line


def test_a_damaged_record_leaves_the_report_unchecked(ledger: Ledger) -> None:
    (ledger.folder / PLAIN).write_text("{")
    assert lines(check_report(ledger)) == ["note: RESULTS.md: all: expected records to compare it with, found a damaged one"]


def test_the_repositorys_pages_are_checked(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ledger.results.parent
    monkeypatch.setattr("bench.report.write.ROOT", root)
    (root / "README.md").write_text(f"before\n{BEGIN}\n\nold\n\n{END}\nafter\n")
    found = lines(check_report(ledger))
    assert found[0] == "RESULTS.md: all: expected a report, found none; run `make report`", "no note: it is committed"
    assert found[1].startswith("README.md: line 4: expected '| experiment") and "found 'old'" in found[1]


def test_damaged_data_are_found_and_missing_ones_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, raw = small_cifar100()
    monkeypatch.setitem(sources.SOURCES, "cifar100", source_of(spec))
    from_folders(sources.SOURCES["cifar100"], [write_files(tmp_path / "raw", binary_files(raw))], tmp_path / "root")
    (line,) = lines(check_data(tmp_path / "root"))
    assert line.startswith("note: fashion_mnist: arrays: expected the canonical ones, found fashion_mnist is not prepared")
    images = tmp_path / "root/cifar100/train_images.npy"
    stat = images.stat()
    images.write_bytes(images.read_bytes()[:-1] + bytes([images.read_bytes()[-1] ^ 1]))
    os.utime(images, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    section = check_data(tmp_path / "root")
    assert section.problems == 1
    assert lines(section)[0].startswith("cifar100: arrays: expected the canonical ones, found ")
