"""Which commit a record's code was.

A record says what git said where the run was made. Where a copy of the sources travelled beside an older repository, git names that
one's commit and calls the sources changed; but their hash is in the record, and tells which commit they are.
"""

from typing import Any

# From the SHA-256 of the Python sources to the commit that has them; a test takes the sources from git and hashes them.
COMMITS = {
    "6e80c9ff61fe0e73d097eea3ee34895c8ffbd88428a7c45031b931686f77e4ec": "c524af64788eacfd941e87f233e99de2e4d87156",
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
