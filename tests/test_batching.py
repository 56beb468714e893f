"""Which requests are computed in one step."""

import pytest

from embodied.serving.batching import StepCosts, batch_sizes

COSTS_S = {1: 0.010, 2: 0.012, 4: 0.030, 8: 0.100}  # a session: 10, 6, 7.5 and 12.5 ms


@pytest.mark.parametrize(
    ("deadlines_s", "size"),
    [
        ([1.0], 1),
        ([1.0] * 8, 2),  # the most sessions a second
        ([0.011] * 8, 1),  # each would make it alone, and none in a batch of two
        ([0.011, 0.5], 1),
        ([0.005] * 8, 2),  # lost whatever is done: no reason to compute them one by one
        ([0.005, 0.5], 2),
    ],
)
def test_a_batch_pays_and_breaks_no_deadline(deadlines_s, size):
    costs = StepCosts(batch_sizes(8))
    assert costs.sizes == (1, 2, 4, 8)
    for count, cost_s in COSTS_S.items():
        costs.note(False, count, cost_s)
    assert costs.best_size(False, 0.0, deadlines_s) == size


def test_costs_follow_what_is_measured():
    costs = StepCosts([1])
    costs.note(True, 1, 0.1)
    for _ in range(100):
        costs.note(True, 1, 0.2)
    assert costs.expected_s(True, 1) == pytest.approx(0.2, rel=1e-3) and costs.expected_s(False, 1) == 0.0
