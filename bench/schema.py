"""The form of a record, field by field, and what in a given one departs from it.

One table serves two readers. The report asks whether a record holds what it prints; ``bench verify`` asks whether it is complete.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

ABSENT = object()  # stands for a field that is not there
LONGEST_SHOWN = 120  # characters of a value in a message
DEEPEST = 20  # levels of nesting; a record has eight
LARGEST_COUNT = 2**63
LARGEST_NUMBER = 1e100  # sums and squares of what is smaller stay finite
SHORTEST, LONGEST = 1e-6, 1e9  # seconds of an epoch; ratios of what is between stay finite, with their intervals


class Fault(NamedTuple):
    """Where a record is not what it should be. ``str`` gives ``field: expected X, found Y``."""

    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.field + ': ' if self.field else ''}expected {self.expected}, found {self.found}"


class Kind(NamedTuple):
    """What a field may hold, in words and as a test."""

    expected: str
    fits: Callable[[Any], bool]

    def or_null(self) -> "Kind":
        """The same, where the field may also hold nothing."""
        return Kind(f"{self.expected} or null", lambda value: value is None or self.fits(value))


class Field(NamedTuple):
    """A field of the record: dots lead into objects, ``*`` into every item of a list or object. What is null has no fields.

    ``reported``: whether the report needs it; without the others a record is not complete, but can be read.
    """

    path: str
    kind: Kind
    reported: bool = True


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST_NUMBER  # false for NaN


OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
FILLED_LIST = Kind("a list that is not empty", lambda value: isinstance(value, list) and len(value) > 0)
TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number from 0", _is_count)
SEED = Kind("a whole number from 0", lambda value: type(value) is int and value >= 0)
NUMBER = Kind("a finite number", _is_number)
LOSS = Kind("a finite number from 0", lambda value: _is_number(value) and value >= 0)
POSITIVE = Kind("a number above 0", lambda value: _is_number(value) and value > 0)
SECONDS = Kind(
    f"a positive number of seconds, {SHORTEST:g} to {LONGEST:g}", lambda value: _is_number(value) and SHORTEST <= value <= LONGEST
)
PERCENT = Kind("a number from 0 to 100", lambda value: _is_number(value) and 0 <= value <= 100)
SHA256 = Kind("a SHA-256", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)
MAP = Kind("height and width", lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))
BF16 = Kind("units or fp32", lambda value: value in ("units", "fp32"))
FILE = Kind("an object with name and sha256", lambda value: isinstance(value, dict) and value.keys() <= {"name", "sha256"})

FIELDS = (
    Field("run", OBJECT),
    Field("run.experiment", TEXT),
    Field("run.profile", TEXT),
    Field("run.seed", SEED),
    Field("run.configuration_sha256", SHA256),
    Field("configuration", OBJECT),
    Field("configuration.experiment", OBJECT),
    Field("configuration.experiment.name", TEXT, reported=False),
    Field("configuration.experiment.dataset", TEXT, reported=False),
    Field("configuration.experiment.weights", TEXT, reported=False),
    Field("configuration.experiment.recipe", OBJECT, reported=False),
    Field("configuration.experiment.recipe.epochs", COUNT, reported=False),
    Field("configuration.experiment.recipe.batch_size", COUNT, reported=False),
    Field("configuration.experiment.recipe.validation_fraction", NUMBER, reported=False),
    Field("configuration.weights", FILE.or_null()),
    Field("configuration.weights.name", TEXT),
    Field("configuration.weights.sha256", SHA256),
    Field("code", OBJECT),
    Field("code.commit", TEXT.or_null()),
    Field("code.dirty", FLAG.or_null()),
    Field("code.requirements_lock_sha256", SHA256),
    Field("code.sources_sha256", SHA256, reported=False),
    Field("data", OBJECT.or_null()),
    Field("data.name", TEXT),
    Field("data.train_sha256", SHA256),
    Field("data.test_sha256", SHA256),
    Field("data.images", OBJECT),
    Field("data.images.train", COUNT, reported=False),
    Field("data.images.validation", COUNT, reported=False),
    Field("data.images.test", COUNT, reported=False),
    Field("environment", OBJECT),
    Field("environment.device", TEXT),
    Field("environment.threads", COUNT),
    Field("environment.cuda", TEXT.or_null()),
    Field("environment.deterministic", FLAG, reported=False),
    Field("cost", OBJECT.or_null()),
    Field("cost.parameters", COUNT),
    Field("cost.multiply_adds", COUNT),
    Field("results", OBJECT),
    Field("results.error", TEXT.or_null()),
    Field("results.stopped_early", FLAG, reported=False),
    Field("results.weights_sha256", SHA256.or_null(), reported=False),
    Field("results.final", OBJECT.or_null()),
    Field("results.final.best_test", OBJECT),
    Field("results.final.last_test", OBJECT),
    Field("results.final.best_validation", OBJECT.or_null()),
    Field("results.final.test_at_best_validation", OBJECT.or_null()),
    Field("results.final.*.epoch", COUNT, reported=False),
    Field("results.final.*.accuracy", PERCENT),
    Field("results.epochs", LIST),
    Field("results.epochs.*", OBJECT),
    Field("results.epochs.*.epoch", COUNT, reported=False),
    Field("results.epochs.*.train", OBJECT),
    Field("results.epochs.*.train.loss", LOSS, reported=False),
    Field("results.epochs.*.train.correct", COUNT, reported=False),
    Field("results.epochs.*.train.images", COUNT),
    Field("results.epochs.*.validation", OBJECT.or_null(), reported=False),
    Field("results.epochs.*.validation.loss", LOSS, reported=False),
    Field("results.epochs.*.validation.correct", COUNT, reported=False),
    Field("results.epochs.*.validation.images", COUNT),
    Field("results.epochs.*.test", OBJECT, reported=False),
    Field("results.epochs.*.test.loss", LOSS, reported=False),
    Field("results.epochs.*.test.correct", COUNT),
    Field("results.epochs.*.test.images", COUNT),
    Field("timings", OBJECT),
    Field("timings.started", TEXT, reported=False),
    Field("timings.finished", TEXT, reported=False),
    Field("timings.restarts", COUNT),
    Field("timings.epochs", LIST),
    Field("timings.epochs.*", OBJECT),
    Field("timings.epochs.*.train_seconds", SECONDS),
    Field("timings.epochs.*.evaluation_seconds", SECONDS),
    Field("timings.earlier.*", OBJECT),  # where there are any
    Field("timings.earlier.*.environment", OBJECT, reported=False),
    Field("timings.earlier.*.code", OBJECT, reported=False),
    Field("timings.earlier.*.epochs", COUNT, reported=False),
)
WHEN_PRESENT = (  # what is left out where it is not used
    Field("configuration.experiment.train_images", COUNT),
    Field("configuration.experiment.test_images", COUNT),
    Field("configuration.experiment.recipe.patience", COUNT),
    Field("environment.torch", TEXT),
    Field("environment.bf16", BF16),
    Field("environment.depthwise", TEXT),
    Field("environment.compiled", FLAG),
    Field("environment.cuda_graph", FLAG),
    Field("cost.attention_parameters", COUNT),
    Field("cost.attention_maps", OBJECT),
    Field("cost.attention_maps.*", MAP),
    Field("results.epochs.*.gates", OBJECT),
    Field("results.epochs.*.gates.*", NUMBER),
    Field("timings.earlier", FILLED_LIST),
)
WHEN_GATED = (  # of a network with attention
    Field("cost.attention_parameters", COUNT),
    Field("cost.attention_maps", OBJECT),
    Field("results.epochs.*.gates", OBJECT, reported=False),
)
WHEN_DONE = (  # a run that failed may have none of them
    Field("data", OBJECT),
    Field("cost", OBJECT),
    Field("results.final", OBJECT),
    Field("results.epochs", FILLED_LIST),
    Field("timings.epochs", FILLED_LIST),
)


def faults(record: dict[str, Any], *, complete: bool) -> Iterator[Fault]:
    """Yield every field of a record that is absent or holds something else than it should; see :func:`faults_in`.

    Args:
        complete: ask for every field, rather than for those that the report needs.
    """
    if _too_deep(record):
        fields = []
    else:
        fields = [(field, optional or not (complete or field.reported)) for field, optional in _fields_of(record)]
    yield from faults_in(record, fields)


def faults_in(value: Any, fields: Iterable[tuple[Field, bool]]) -> Iterator[Fault]:
    """Yield every field of an object that is absent or holds something else than it should. Fields unknown here are passed over,
    but nothing may be NaN, infinite, nested too deep, or text that no file can hold.

    Args:
        fields: each with whether it may be absent.
    """
    if _too_deep(value):
        yield Fault("", f"at most {DEEPEST} levels of nesting", "more")
        return
    named = set()
    for field, may_be_absent in fields:
        for place, found in _values(value, field.path):
            if place not in named and not (found is ABSENT and may_be_absent) and not field.kind.fits(found):
                named.add(place)
                yield Fault(place, field.kind.expected, shown(found))
    for place, leaf in _leaves(value):
        if place not in named and isinstance(leaf, float) and not math.isfinite(leaf):
            yield Fault(place, NUMBER.expected, shown(leaf))
        if isinstance(leaf, str) and not _is_unicode(leaf):
            yield Fault(place, "text in Unicode", shown(leaf))


def _fields_of(record: dict[str, Any]) -> Iterator[tuple[Field, bool]]:
    """The fields that a record of its kind has, each with whether it may be absent; one may be asked for twice."""
    yield from ((field, False) for field in FIELDS)
    yield from ((field, True) for field in WHEN_PRESENT)
    if [value for _, value in _values(record, "configuration.experiment.model.attention") if isinstance(value, dict)]:
        yield from ((field, False) for field in WHEN_GATED)
    if [value for _, value in _values(record, "results.status") if value == "done"]:
        yield from ((field, False) for field in WHEN_DONE)


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, not too long."""
    return "nothing" if value is ABSENT else _shortened(repr(value))


def name_of(key: str) -> str:
    """A key or a file name as a message shows it: bare, on one line, not too long."""
    return _shortened(key if key.isprintable() else repr(key)[1:-1])


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 4]} ..."


def _values(value: Any, path: str, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that a path leads to, with its place; nothing where an object or list on the way is something else."""
    if not path:
        yield place, value
        return
    head, _, rest = path.partition(".")
    if head == "*":
        for key, item in _items(value):
            yield from _values(item, rest, f"{place}.{key}")
    elif isinstance(value, dict):
        yield from _values(value.get(head, ABSENT), rest, f"{place}.{head}" if place else head)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """The items of a list, counted from 1, or of an object, by its keys."""
    if isinstance(value, dict):
        yield from ((name_of(key), item) for key, item in value.items())
    elif isinstance(value, list):
        yield from ((str(number), item) for number, item in enumerate(value, 1))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text, flag and null, with its place, and every key as text."""
    if isinstance(value, dict):
        yield from ((place, key) for key in value)
    if not isinstance(value, dict | list):
        yield place, value
    for key, item in _items(value):
        yield from _leaves(item, f"{place}.{key}" if place else key)


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [item for outer in level for _, item in _items(outer)]
    return bool(level)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it. JSON can write half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
