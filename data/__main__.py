"""Fetch, verify and prepare the data sets and the ImageNet-1k weights: what `make data` runs.

    python -m data                                 over the network, into $DATASETS or ./datasets
    python -m data --from DIR [--from DIR ...]     from archives or unpacked files anywhere below DIR, without the network

Run it again at any time: what is ready stays, what was interrupted continues.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from . import fetch, sources
from .canonical import Dataset
from .errors import DataError
from .prepare import from_folders, ready
from .roots import resolve


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all ready, 2 something could not be prepared (the rest is) or told, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return _prepare_all(resolve(options.root), options)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130


def _prepare_all(root: Path, options: argparse.Namespace) -> int:
    status = 0
    for name in options.only or sources.SOURCES:
        try:
            _prepare(sources.SOURCES[name], root, options)
        except DataError as error:
            print(error, file=sys.stderr)
            status = 2
    if options.weights and not options.only:
        try:
            _prepare_weights(root, options)
        except DataError as error:
            print(error, file=sys.stderr)
            status = 2
    return status


def _prepare(source: sources.Source, root: Path, options: argparse.Namespace) -> None:
    if (dataset := ready(source, root)) is not None:
        _report(dataset, "ready")
    elif options.folders:
        _report(from_folders(source, options.folders, root), "verified")
    else:
        _report(fetch.dataset(source, root, options.mirrors), "verified")


def _prepare_weights(root: Path, options: argparse.Namespace) -> None:
    if options.folders:
        path = fetch.imagenet_weights_from(options.folders, root)
        if path is None:
            folders = ", ".join(map(str, options.folders))
            advice = "put the file there or set WEIGHTS=FILE, else `make all` fetches it over the network"
            _print(f"{sources.IMAGENET_WEIGHTS.filename}  not under {folders}; {advice}")
            return
    else:
        path = fetch.imagenet_weights(root, options.mirrors)
    _print(f"{path.name}  {sources.IMAGENET_WEIGHTS.known_hash}  verified")


def _report(dataset: Dataset, state: str) -> None:
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        _print(f"{dataset.name:<14} {name:<5} {len(split.labels):>6,} images  sha256:{split.sha256}  {state}")


def _print(line: str) -> None:
    try:
        print(line.encode(errors="backslashreplace").decode(), flush=True)  # a folder's name can be any bytes
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left as it ends
        raise DataError(f"standard output: cannot be written ({error.strerror}): send it elsewhere; the work goes on") from error


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with the line."""
        self.exit(2, f"error: {message}; `{self.prog} --help` says what there is\n")


def _folder(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("expected a folder, found an empty name")
    return Path(name)


def _mirror(url: str) -> str:
    with suppress(ValueError):
        if urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname:
            return url
    raise argparse.ArgumentTypeError(f"expected an address such as https://host/folder, found {url!r}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m data", description="Fetch, verify and prepare data sets and weights.")
    parser.add_argument(
        "--from",
        dest="folders",
        type=_folder,
        action="append",
        metavar="DIR",
        help="take the files from DIR; may be repeated",
    )
    parser.add_argument("--root", type=_folder, metavar="DIR", help="where to put them (default: $DATASETS, else ./datasets)")
    parser.add_argument(
        "--only", nargs="+", choices=sorted(sources.SOURCES), metavar="NAME", help="these data sets alone, no weights"
    )
    parser.add_argument("--no-weights", dest="weights", action="store_false", help="without the ImageNet-1k weights")
    parser.add_argument(
        "--mirror",
        dest="mirrors",
        type=_mirror,
        action="append",
        default=[],
        metavar="URL",
        help="try URL/<file name> first; may be repeated",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
