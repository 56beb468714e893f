"""Scaling to the data's limits, and its inverse."""

import numpy as np
import torch

from embodied.normalize import LimitsNormalizer
from embodied.types import Statistics


def fitted(rows, tied=()):
    normalizer = LimitsNormalizer(rows.shape[1])
    normalizer.fit(Statistics(rows.min(0), rows.max(0), rows.mean(0), rows.std(0), len(rows)), tied)
    return normalizer


def test_limits_go_to_the_ends_and_back():
    rows = np.random.default_rng(0).uniform([-3, 10, 0.001], [5, 11, 0.002], (100, 3))
    normalizer, x = fitted(rows), torch.from_numpy(rows).float()
    scaled = normalizer.normalize(x)
    torch.testing.assert_close(scaled.amin(0), -torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.amax(0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalizer.denormalize(scaled), x, atol=1e-5, rtol=1e-5)


def test_an_element_that_never_varies_goes_to_zero_without_being_blown_up():
    rows = np.tile([0.7, 0.0], (10, 1))
    rows[:, 0] += 1e-6 * np.arange(10)
    normalizer = fitted(rows)
    scaled = normalizer.normalize(torch.tensor([[0.7, 0.0], [0.8, 0.0]]))
    torch.testing.assert_close(scaled, torch.tensor([[0.0, 0.0], [0.1, 0.0]]), atol=1e-5, rtol=0)


def test_tied_elements_share_the_widest_scale_each_about_its_own_centre():
    rows = np.array([[0.0, 1.0, 10.0, 7.0], [4.0, 2.0, 10.0, 8.0]])
    normalizer = fitted(rows, tied=[(0, 2, 1)])
    torch.testing.assert_close(normalizer.scale, torch.tensor([0.5, 0.5, 0.5, 2.0]))
    expected = torch.tensor([[-1.0, -0.25, 0.0, -1.0], [1.0, 0.25, 0.0, 1.0]])
    torch.testing.assert_close(normalizer.normalize(torch.from_numpy(rows).float()), expected)
    alone = fitted(rows)
    assert torch.equal(fitted(rows, tied=[(3,)]).scale, alone.scale)


def test_it_travels_in_the_weights():
    normalizer = fitted(np.array([[0.0, 1.0], [2.0, 3.0]]))
    other = LimitsNormalizer(2)
    other.load_state_dict(normalizer.state_dict())
    assert torch.equal(other.normalize(torch.ones(2)), normalizer.normalize(torch.ones(2)))
