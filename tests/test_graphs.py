"""What a capture does when its work fails, with a GPU that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from bench import memory
from bench.engine import graphs


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Streams that became the current one. Ending a capture that failed fails too, as one with branches that were not joined."""
    became: list[Any] = []

    @contextmanager
    def graph(graph: object, pool: object, stream: object) -> Iterator[None]:
        failed = True
        try:
            yield
            failed = False
        finally:
            if failed:
                raise RuntimeError("capturing stream has unjoined work")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the stream before")
    monkeypatch.setattr(torch.cuda, "set_stream", became.append)
    monkeypatch.setattr(graphs, "_trunk", lambda device: "the trunk")
    return became


def test_want_of_memory_comes_through_a_capture(streams: list[Any]) -> None:
    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        graphs.capture(work)
    assert memory.ran_out(caught.value) and streams == ["the stream before"]


@pytest.mark.parametrize("fails", [False, True])
def test_work_is_done_on_the_stream_that_it_is_recorded_on(
    fails: bool, streams: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream for each capture would keep memory of its own. What comes next waits for what failed, too: it uses its memory."""
    order: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            order.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def current(stream: Stream) -> Iterator[None]:
        order.append(f"on {stream.name}")
        yield

    trunk, before = Stream("the trunk"), Stream("the stream before")
    monkeypatch.setattr(graphs, "_trunk", lambda device: trunk)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: before)
    monkeypatch.setattr(torch.cuda, "stream", current)

    def work() -> None:
        order.append("work")
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) if fails else nullcontext():
        graphs.captured(work)
    times = 1 if fails else graphs.WARM_UP
    first, last = "the trunk waits for the stream before", "the stream before waits for the trunk"
    assert order == [first, "on the trunk", *["work"] * times, last, *([] if fails else ["work"])]


def test_a_capture_that_works_changes_no_stream(streams: list[Any]) -> None:
    done: list[bool] = []
    graphs.capture(lambda: done.append(True))
    assert done == [True] and not streams
