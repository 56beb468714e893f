"""Statistics over windows, in blocks, are those of all rows at once."""

import numpy as np
import pytest

from embodied.datasets import window_statistics as module
from embodied.datasets.window_sampler import WindowSampler
from embodied.datasets.window_statistics import window_statistics
from embodied.errors import UserError


def make_windows(representation):
    random = np.random.default_rng(0)
    state, action = random.normal(size=(40, 3)), random.normal([0.0, 1e4], 1.0, (40, 2))
    return WindowSampler(state, action, np.array([9, 40]), history=1, horizon=4, representation=representation)


@pytest.mark.parametrize("block", [1, 7, 40, 100])
def test_every_window_counts_once(monkeypatch, block):
    monkeypatch.setattr(module, "WINDOWS_AT_ONCE", block)
    windows = make_windows("delta")
    found = window_statistics(windows, lambda window: window.action[window.valid])
    everything = windows.gather(np.arange(40))
    rows = everything.action[everything.valid].astype(np.float64)
    assert found.count == len(rows) == 40 * 4 - 2 * 6  # three, two and one padded at the end of both episodes
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-9)
    np.testing.assert_array_equal(found.minimum, rows.min(0))
    np.testing.assert_array_equal(found.maximum, rows.max(0))


def test_windows_without_rows_have_no_statistics():
    with pytest.raises(UserError, match="at least one row"):
        window_statistics(make_windows("absolute"), lambda window: window.action[:0].reshape(0, 2))
