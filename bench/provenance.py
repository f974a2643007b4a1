"""Which commit a record's code was, and whether it ran with the torch of its lock.

A record says what git said where the run was made. Where a copy of the sources travelled beside an older repository, git names that
one's commit and calls the sources changed; but their hash is in the record, and tells which commit they are.
"""

from collections.abc import Mapping
from typing import Any

# From the SHA-256 of requirements.lock to the torch that it pins, for every lock that was committed; a test reads them from git.
LOCKED_TORCH = {
    "daa554bee5a244e35d7df77f6e43dcbb7f6f2451829da35d2c5e2eab21a6e934": "2.13.0",
    "1e3b2016c791b0a5560ad7c962f04d4815c55f71a01fbf18f3399bfcbb97d438": "2.13.0",
    "e5a3d56deb5696847db92f44a9b65b39b791ca6a25c3471d65f9123ebc74c218": "2.13.0",
}

# From the SHA-256 of the Python sources to the commit that has them; a test takes the sources from git and hashes them.
COMMITS = {
    "6e80c9ff61fe0e73d097eea3ee34895c8ffbd88428a7c45031b931686f77e4ec": "c524af64788eacfd941e87f233e99de2e4d87156",
    "e27018e4b8651a7271ebbdb4b1da5db70e08fbe3550c7578fb0f47629ae64b8a": "777d8d5fa67a3a46666d3df03b3a547376f29750",
}


def commit_of(code: dict[str, Any]) -> str | None:
    """The commit whose sources made it, or None where they were changed or nobody knows.

    Args:
        code: a record's, from :func:`bench.environment.code_state`.
    """
    if code["dirty"] is False and code["commit"]:
        return str(code["commit"])
    return COMMITS.get(code["sources_sha256"])


def shown(code: dict[str, Any]) -> str:
    """The commit's first digits for a page, with ``-dirty`` where the sources were not the commit's."""
    return commit[:12] if (commit := commit_of(code)) else (code["commit"] or "unknown")[:12] + ("-dirty" if code["dirty"] else "")


def torch_version(environment: Mapping[str, Any]) -> str:
    """The version without what it was built for: ``2.13.0`` of ``2.13.0+cu130``."""
    return str(environment.get("torch")).partition("+")[0]


def locked_instead(record: Mapping[str, Any]) -> str | None:
    """The torch that a record's lock pins, where the run had another one; None where it had that, or nobody knows the lock.

    A machine without a network brings its own torch; the lock in its record is that of the sources.
    """
    locked = LOCKED_TORCH.get(record["code"]["requirements_lock_sha256"])
    return locked if locked != torch_version(record["environment"]) else None
