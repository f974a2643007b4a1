"""The same grid, twenty times in one process: nothing piles up, and each round gives the same records."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.environment import ROOT
from bench.ledger import Ledger
from tests import tally
from tests.reliability.equality import same, without_timings

ROUNDS = 20
MEBIBYTES = 8  # more after the last ten rounds than after the first; a round allocates gigabytes, most in one size


@pytest.mark.slow
def test_nothing_piles_up(tmp_path: Path) -> None:
    """With real networks; what the allocator holds back is given up before it is counted."""
    program = [sys.executable, "-m", "tests.reliability.soak", str(tmp_path), str(ROUNDS)]
    ended = subprocess.run(program, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    rounds = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [each["status"] for each in rounds] == [0] * ROUNDS
    assert len({(each["files"], each["threads"]) for each in rounds[1:]}) == 1
    first, last = (min(each["mebibytes"] for each in half) for half in (rounds[: ROUNDS // 2], rounds[ROUNDS // 2 :]))
    assert last - first < MEBIBYTES, [each["mebibytes"] for each in rounds]
    expected, *others = ([without_timings(record) for _, record in Ledger(tmp_path / str(i + 1)).records()] for i in range(ROUNDS))
    assert len(expected) == 2
    for records in others:
        same("".join(records), "".join(expected))
    most = max(each["mebibytes"] for each in rounds)
    tally.tell(
        "soak",
        f"{ROUNDS} rounds, {first:.0f} MiB in the first ten, {last:.0f} in the last (at most {most:.0f}), "
        f"{rounds[1]['files']:.0f} files after the first round, {rounds[-1]['files']:.0f} after the last",
    )
