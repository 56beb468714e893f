"""The difference between two clocks: exact with equal ways, bounded by half of the delay, and the least delay wins."""

import numpy as np
import pytest

from embodied.robot.clock_offset import ClockOffset, Exchange

OFFSET_S = 1234.5


def exchange(sent_s, there_s, back_s, thinking_s=0.02):
    received = sent_s + there_s + OFFSET_S
    return Exchange(sent_s, received, received + thinking_s, sent_s + there_s + thinking_s + back_s)


def test_equal_ways_give_the_offset_exactly():
    one = exchange(10.0, 0.03, 0.03)
    assert one.offset_s == pytest.approx(OFFSET_S) and one.delay_s == pytest.approx(0.06)


@pytest.mark.parametrize(("there_s", "back_s"), [(0.05, 0.01), (0.0, 0.2), (0.3, 0.0)])
def test_unequal_ways_err_by_half_their_difference_which_half_the_delay_bounds(there_s, back_s):
    clock = ClockOffset()
    clock.add(exchange(3.0, there_s, back_s))
    assert clock.offset_s - OFFSET_S == pytest.approx((there_s - back_s) / 2)
    assert abs(clock.offset_s - OFFSET_S) <= clock.error_s + 1e-9 == pytest.approx((there_s + back_s) / 2)


def test_the_exchange_with_the_least_delay_is_trusted_as_long_as_it_is_new():
    generator = np.random.default_rng(0)
    clock, ways = ClockOffset(window=16), []
    for index in range(100):
        there, back = 0.002 + generator.exponential(0.05), 0.002 + generator.exponential(0.05)
        ways.append((there, back))
        clock.add(exchange(float(index), there, back))
        there, back = min(ways[-16:], key=sum)
        assert clock.offset_s - OFFSET_S == pytest.approx((there - back) / 2, abs=1e-9)
        assert abs(clock.offset_s - OFFSET_S) <= clock.error_s + 1e-9
    assert clock.error_s < 0.05, "of ways that take 0.1 s on average"


def test_a_clock_that_ran_backwards_is_left_out():
    clock = ClockOffset()
    assert clock.offset_s is None and clock.error_s is None and clock.to_server_s(1.0) is None
    clock.add(Exchange(1.0, 5.0, 4.0, 2.0))
    clock.add(Exchange(1.0, 5.0, 7.0, 2.0))
    clock.add(Exchange(1.0, float("nan"), 7.0, 2.0))
    assert clock.offset_s is None
    clock.add(exchange(1.0, 0.01, 0.01))
    assert clock.to_server_s(2.0) == pytest.approx(2.0 + OFFSET_S)
    clock.reset()
    assert clock.offset_s is None
