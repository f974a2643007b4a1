"""One file from one address, for a network as it is: slow, dead, lying, or cut off in the middle.

pooch checks the hash and puts the file in place in one step; this module brings the bytes. What has arrived stays in
`<filename>.part` when a transfer breaks, and the next attempt at the same address continues it, provided that the
server names the same version of the file (ETag or Last-Modified) and serves ranges; otherwise it starts again.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .archive import looks_like_markup
from .errors import NO_ROOM, disk_error
from .sources import RemoteFile

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 256 * 1024
TRANSIENT_STATUS = {408, 425, 429}
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Patience:
    """How long a server may take. A transfer below `minimum_rate` bytes/s over `window_s` seconds is given up."""

    connect_s: float
    read_s: float
    minimum_rate: float
    window_s: float


class MirrorError(Exception):
    """One address did not give the file. `again`: whether a later attempt may do better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def download(file: RemoteFile, url: str, folder: Path, patience: Patience) -> Path:
    """Fetch `file` from `url` into `folder`, at once if it is there with the right hash.

    Raises MirrorError if this address fails (the caller may try another), DiskError if the folder cannot take the file.
    """
    import pooch
    import requests
    import urllib3

    pooch.get_logger().setLevel("WARNING")  # our own messages say more
    resumed = False

    def bring(url: str, output: str, _: Any) -> None:
        nonlocal resumed
        part = Path(folder) / f"{file.filename}.part"
        resumed = _stream(url, part, file.max_bytes, patience)
        part.replace(output)
        _note_of(part).unlink(missing_ok=True)

    try:
        if file.known_hash is None:  # pooch would take whatever lies there
            (folder / file.filename).unlink(missing_ok=True)
        return Path(pooch.retrieve(url, file.known_hash, fname=file.filename, path=folder, downloader=bring))
    except MirrorError as error:
        if not error.again:
            _discard(folder / f"{file.filename}.part")
        raise
    except requests.exceptions.Timeout as error:
        raise MirrorError(f"no answer within {patience.read_s:g} s", again=True) from error
    except (requests.exceptions.SSLError, requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise MirrorError(_reason(error), again=False) from error
    except urllib3.exceptions.ReadTimeoutError as error:
        raise MirrorError(f"stalled: nothing came for {patience.read_s:g} s", again=True) from error
    except urllib3.exceptions.ProtocolError as error:
        raise MirrorError("the connection closed before the end of the file", again=True) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise MirrorError(_reason(error), again=True) from error
    except ValueError as error:  # pooch: the hash differs
        raise MirrorError(_wrong_hash(file, error), again=resumed) from error
    except OSError as error:
        if error.errno in NO_ROOM:  # half a file helps nobody on a full disk
            _discard(folder / f"{file.filename}.part")
        raise disk_error(error, folder) from error


def host_of(url: str) -> str:
    return url.partition("://")[2].partition("/")[0] or url


def _stream(url: str, part: Path, max_bytes: int, patience: Patience) -> bool:
    """Bring `part` to its full length. True if it continued an earlier transfer."""
    import requests

    note = _read_note(part)
    offset = part.stat().st_size if note.get("url") == url and part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # a .gz file is to arrive as it is, not unpacked on the way
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": note["validator"]}
    timeout = (patience.connect_s, patience.read_s)
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code == 416:  # the part is longer than the file has become
            part.unlink(missing_ok=True)
            raise MirrorError("the server's file has changed", again=True)
        _check_response(response, max_bytes)
        resumed = bool(offset) and _continues_at(response, offset)
        if not resumed:
            offset = 0
        _write_note(part, url, response)
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else None
        with part.open("ab" if resumed else "wb") as out, _progress(part.stem, total, offset) as advance:
            _copy(response, out, offset, max_bytes, patience, advance)
    return resumed


def _copy(response: "requests.Response", out: IO[bytes], offset: int, max_bytes: int, patience: Patience, advance: Advance) -> None:
    """Write the body as it comes; MirrorError if it crawls, is a page of HTML, or is longer than the file can be."""
    window_start, window_bytes = time.monotonic(), 0
    while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):  # read1: what has come, without waiting for all
        if offset == 0 and looks_like_markup(chunk[:64]):
            raise MirrorError("served an HTML page instead of the file", again=False)
        offset += len(chunk)
        if offset > max_bytes:
            raise MirrorError(f"sends more than {max_bytes:,} bytes: not this file", again=False)
        out.write(chunk)
        advance(len(chunk))
        window_bytes += len(chunk)
        elapsed = time.monotonic() - window_start
        if elapsed >= patience.window_s:
            if window_bytes / elapsed < patience.minimum_rate:
                raise MirrorError(f"too slow: {window_bytes / elapsed / 1000:.0f} kB/s", again=True)
            window_start, window_bytes = time.monotonic(), 0


def _check_response(response: "requests.Response", max_bytes: int) -> None:
    status = response.status_code
    if status not in (200, 206):
        again = status >= 500 or status in TRANSIENT_STATUS
        raise MirrorError(f"HTTP status {status} {response.reason}", again=again)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise MirrorError("served an HTML page instead of the file", again=False)
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise MirrorError(f"offers {int(length):,} bytes, more than the {max_bytes:,} expected", again=False)


def _continues_at(response: "requests.Response", offset: int) -> bool:
    """Whether the body is the rest from `offset`; servers without ranges send the whole with status 200."""
    if response.status_code != 206:
        return False
    if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
        raise MirrorError("answered with another range than asked for", again=False)
    return True


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, str]:
    """Where a part came from and which version it is; empty if that is not known, and then it cannot be continued."""
    try:
        note = json.loads(_note_of(part).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) and all(isinstance(note.get(k), str) for k in ("url", "validator")) else {}


def _write_note(part: Path, url: str, response: "requests.Response") -> None:
    etag = response.headers.get("ETag", "")
    validator = response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
    if validator:
        _note_of(part).write_text(json.dumps({"url": url, "validator": validator}))
    else:
        _note_of(part).unlink(missing_ok=True)


@contextmanager
def _progress(name: str, total: int | None, done: int) -> Iterator[Advance]:
    """A live bar on a terminal, and nothing at all elsewhere: logs stay readable."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    figures = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), BarColumn(), *figures, console=console) as progress:
        task = progress.add_task(name, total=total, completed=done)
        yield lambda count: progress.advance(task, count)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


def _wrong_hash(file: RemoteFile, error: ValueError) -> str:
    found = re.search(r"got ([0-9a-f]+)", str(error))
    return f"expected {file.known_hash}, found {found[1] if found else error}"


def _reason(error: Exception) -> str:
    """The end of requests' and urllib3's nested messages: "Connection refused", not the pool it happened in."""
    inner = getattr(error.args[0] if error.args else error, "reason", error)
    return str(inner).rsplit(": ", 1)[-1] or type(inner).__name__
