"""Reading ahead: the same windows in the same order, bounded, with errors where they belong, and an end."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from test_window_sampler import make_sampler

from embodied.datasets.read_ahead import ReadAhead
from embodied.errors import UserError


class Counted:
    """A source that counts its gathers and fails at one of them."""

    def __init__(self, fail_at: int | None = None) -> None:
        self._sampler, self.gathered, self._fail_at = make_sampler(), 0, fail_at

    def gather(self, indices):
        if self.gathered == self._fail_at:
            raise UserError(expected="an intact shard", found="a torn one", remedy="copy it again")
        self.gathered += 1
        return self._sampler.gather(indices)

    def batches(self, *arguments, **options):
        return self._sampler.batches(*arguments, **options)


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_the_windows_and_their_order_are_those_without_it(ahead):
    sampler = make_sampler()
    plain = [sampler.gather(indices) for indices in itertools.islice(sampler.batches(1, 5, 2), 12)]
    with ReadAhead(sampler, sampler.batches(1, 5, 2), ahead) as windows:
        for expected in plain:
            window = next(windows)
            np.testing.assert_array_equal(window.state, expected.state)
            np.testing.assert_array_equal(window.action, expected.action)
    assert reading_threads() == []


def test_no_more_batches_wait_than_it_was_told():
    source = Counted()
    with ReadAhead(source, source.batches(0, 4), 3) as windows:
        next(windows)
        deadline = time.monotonic() + 20
        while source.gathered < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert source.gathered == 5  # one taken, three waiting, one in the thread's hand


def test_an_error_comes_with_its_batch_and_ends_the_thread():
    source = Counted(fail_at=2)
    windows = ReadAhead(source, source.batches(0, 4), 4)
    next(windows), next(windows)
    with pytest.raises(UserError, match="an intact shard; found a torn one"):
        next(windows)
    assert reading_threads() == []
    assert list(windows) == []


def test_batches_that_end():
    sampler = make_sampler()
    with ReadAhead(sampler, itertools.islice(sampler.batches(0, 4), 3), 2) as windows:
        assert len(list(windows)) == 3


def test_a_negative_number_of_batches():
    with pytest.raises(UserError, match="to read ahead of at least 0; found -1"):
        ReadAhead(make_sampler(), iter([]), -1)
