"""What is read ahead comes in its order, is bounded, hands on what was raised, and is over when it is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from rnnsearch.ahead import Ahead


def test_entries_come_in_their_order_and_end():
    with Ahead(iter(range(200)), depth=3) as ready:
        assert list(ready) == list(range(200))
        assert next(ready, None) is None


def test_no_more_is_read_than_was_asked_for_and_the_next_is_there_at_once():
    read, full = [], threading.Event()

    def entries() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            if number == 3:
                full.set()
            yield number

    with Ahead(entries(), depth=3) as ready:
        assert full.wait(60)
        assert read == [0, 1, 2, 3]  # three are ready, one is in hand
        before = ready.waited
        assert [next(ready) for _ in range(3)] == [0, 1, 2]
        assert ready.waited == before
    assert len(read) <= 8


def test_the_time_that_the_reader_stood_still_is_counted():
    def entries() -> Iterator[int]:
        time.sleep(0.05)
        yield 1

    with Ahead(entries(), depth=1) as ready:
        assert next(ready) == 1
        assert 0.01 < ready.waited < 30


def test_an_error_comes_after_the_entries_before_it_and_the_thread_ends():
    def entries() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    with Ahead(entries(), depth=5) as ready:
        assert next(ready) == 1
        for _ in range(2):
            with pytest.raises(KeyError, match="two"):
                next(ready)


def test_the_thread_is_gone_when_it_is_closed_though_nobody_took_what_is_ready():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Ahead(iter(range(10**9)), depth=2):
        raise ZeroDivisionError
    assert threading.active_count() == before
