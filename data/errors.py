"""What can go wrong with data, as one line for the person who has to act on it."""

import errno
from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_WRITE = {errno.EROFS, errno.EACCES, errno.EPERM}


class DataError(Exception):
    """A problem with data, weights or their folders: what was expected, what was found, what to do. One line."""


class Missing(DataError):
    """The data set has not been prepared under this root."""


class Damaged(DataError):
    """The prepared arrays are not those that were written."""


class DiskError(DataError):
    """The folder cannot be written: full, read-only, or not a folder. No other mirror or source can help."""


def disk_error(error: OSError, folder: Path) -> DiskError:
    """The one line for a failed write under `folder`."""
    if error.errno in NO_ROOM:
        advice = "no room left for it: free about 500 MB, or choose another folder with DATASETS=DIR"
    elif error.errno in NO_WRITE:
        advice = "the folder is not writable: change its permissions, or choose another with DATASETS=DIR"
    else:
        advice = "choose another folder with DATASETS=DIR"
    return DiskError(f"cannot write under {folder} ({error.strerror or error}): {advice}")


def reason(error: Exception) -> str:
    """What another library's error says, on one line."""
    lines = str(error).splitlines() or [type(error).__name__]
    return "".join(filter(str.isprintable, lines[0]))
