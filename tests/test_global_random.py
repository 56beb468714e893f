"""A private stream inside numpy's global random state."""

import numpy as np
import pytest

from embodied.sim.global_random import GlobalRandomStream


def test_inside_are_the_numbers_of_its_own_seed_across_blocks():
    stream, expected = GlobalRandomStream(5), np.random.RandomState(5)
    for _ in range(3):
        with stream:
            np.testing.assert_array_equal(np.random.uniform(size=4), expected.uniform(size=4))
    stream.seed(5)
    with stream:
        assert np.random.uniform() == np.random.RandomState(5).uniform()


@pytest.mark.parametrize("drawn_before", [0, 1, 2])
def test_outside_it_is_as_if_nothing_had_been_drawn(drawn_before):
    np.random.seed(3)
    expected = np.random.RandomState(3)
    for _ in range(drawn_before):  # normals come in pairs: after one, numpy has another in store
        assert np.random.randn() == expected.randn()
    generator = np.random.get_bit_generator()
    with GlobalRandomStream(), pytest.raises(ZeroDivisionError), GlobalRandomStream(1):
        np.random.randn(3)
        raise ZeroDivisionError
    assert np.random.get_bit_generator() is generator
    np.testing.assert_array_equal(np.random.randn(5), expected.randn(5))


def test_code_inside_may_seed_the_global_state():
    np.random.seed(3)
    with GlobalRandomStream():
        np.random.seed(8)
        assert np.random.rand() == np.random.RandomState(8).rand()
    assert np.random.rand() == np.random.RandomState(3).rand()


def test_a_stream_is_not_entered_twice():
    stream = GlobalRandomStream()
    with stream, pytest.raises(RuntimeError, match="in use"), stream:
        pass
