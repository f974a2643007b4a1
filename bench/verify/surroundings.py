"""What lies around the records: other files, the report, the locks, the data."""

import sys
from collections.abc import Iterator
from pathlib import Path

import data
from bench.errors import UserError
from bench.ledger import Ledger
from bench.locks import LOCKS, PYTHONS, LockError, disagreements, pins
from bench.report.write import is_committed, report_pages
from bench.verify.findings import Finding, Section, compare_text, counted


def check_folder(ledger: Ledger) -> Section:
    """Nothing but records lies in the ledger's folder."""
    files = [path for path in ledger.contents() if not path.is_dir()]
    findings = [
        Finding(str(path), "name", "a record (.json)", "a file of another kind; delete it, or move it out of the ledger")
        for path in files
        if path.suffix != ".json"  # a write that was cut off leaves ".seed0-1234abcd.json.xyz.unfinished"
    ]
    return Section("folder", counted(len(files), "file"), findings)


def check_report(ledger: Ledger) -> Section:
    """The report is what the records give."""
    try:
        found = list(ledger.records())
    except UserError:
        damaged = Finding("RESULTS.md", "all", "records to compare it with", "a damaged one", note=True)
        return Section("report", "nothing", [damaged])
    findings: list[Finding] = []
    pages: dict[Path, str] = {}
    try:
        pages.update(report_pages(ledger.results, found))
    except UserError as error:
        findings.append(Finding("report", "all", "what it is made of", str(error)))
    for path, expected in pages.items():
        if path.is_file():
            findings += compare_text(path.name, expected, _text(path), "run `make report`")
        else:  # the repository's own is committed; a user's ledger may not have been reported yet
            note = not is_committed(ledger.results)
            findings.append(Finding(path.name, "all", "a report", "none; run `make report`", note=note))
    return Section("report", counted(len(pages), "file"), findings)


def check_locks(root: Path) -> Section:
    """Every lock gives what its source asks for, with hashes, on each Python of the suite; this Python is one of them."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    findings: list[Finding] = []
    if running not in PYTHONS:
        findings.append(Finding("this Python", "version", f"one of {', '.join(PYTHONS)}", running, note=True))
    for name in LOCKS:
        findings += check_lock(name, _text((root / name).with_suffix(".in")), _text(root / name))
    return Section("locks", counted(len(LOCKS), "lock"), findings)


def check_lock(name: str, source: str, lock: str) -> Iterator[Finding]:
    """One lock against its source."""
    try:
        for package, expected, found in disagreements(source, lock):
            yield Finding(name, package, expected, f"{found}; run `make lock`")
        for pin in pins(lock):
            if not pin.hashes:
                yield Finding(name, pin.name, "the SHA-256 of its files", "none; run `make lock`")
    except LockError as error:
        expected, _, found = str(error).removeprefix("expected ").partition(", found ")
        yield Finding(name, "text", expected, f"{found}; run `make lock`")


def check_data(datasets: Path) -> Section:
    """The arrays of every data set that is prepared have their canonical hashes."""
    findings = []
    for name in data.NAMES:
        status = data.status(name, datasets, verify=True)
        if status.state != "ready":
            findings.append(Finding(name, "arrays", "the canonical ones", status.detail, note=status.state == "missing"))
    return Section("data", counted(len(data.NAMES), "data set"), findings)


def _text(path: Path) -> str:
    """A file as text, empty where there is none."""
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""
