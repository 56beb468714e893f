"""MMRV and r: the published figures of SimplerEnv, cases known by hand, and NumPy."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from simplerenv_rates import PUBLISHED

from embodied.errors import UserError
from embodied.evaluation.rank_agreement import mean_maximum_rank_violation, pearson_r, rank_agreement

WITHIN = 0.004  # the rates are rounded in print


@pytest.mark.parametrize(("task", "simulation"), list(itertools.product(PUBLISHED, ("vm", "va"))))
def test_published_figures_are_reproduced(task, simulation):
    real = PUBLISHED[task]["real"]
    sim, mmrv, r = PUBLISHED[task][simulation]
    assert mean_maximum_rank_violation(real, sim) == pytest.approx(mmrv, abs=WITHIN)
    assert pearson_r(real, sim) == pytest.approx(r, abs=WITHIN)


def test_published_figures_are_reproduced_from_the_file(shared_data):
    path = shared_data / "simplerenv_google_robot.json"
    if not path.is_file():
        pytest.skip(f"EMBODIED_SHARED_DATA has no {path.name}")
    tasks = json.loads(path.read_text())["tasks"]
    assert len(tasks) == 5
    for task, columns in tasks.items():
        for simulation in ("vm", "va"):
            mmrv, r = columns[f"paper_{simulation}"]
            found = rank_agreement(columns["real"], columns[simulation], resamples=100)
            assert (found.mmrv, found.pearson) == pytest.approx((mmrv, r), abs=WITHIN), (task, simulation)


def test_cases_known_by_hand():
    assert mean_maximum_rank_violation([0.2, 0.5, 0.9], [0.1, 0.2, 0.3]) == 0.0
    # The gap is on the real side: swapped arguments give another value.
    assert mean_maximum_rank_violation([0.2, 0.8], [0.6, 0.5]) == pytest.approx(0.6)
    assert mean_maximum_rank_violation([0.6, 0.5], [0.2, 0.8]) == pytest.approx(0.1)
    # A tie in simulation violates the order of the pair once: for the one that is not strictly above.
    assert mean_maximum_rank_violation([0.2, 0.8], [0.5, 0.5]) == pytest.approx(0.3)
    assert mean_maximum_rank_violation([0.5, 0.5], [0.2, 0.8]) == 0.0


def test_mmrv_is_its_definition():
    random = np.random.default_rng(1)
    for count in (2, 3, 6):
        real, sim = random.integers(0, 5, (2, count)) / 5
        expected = np.mean(
            [
                max(abs(real[i] - real[j]) * ((sim[i] > sim[j]) != (real[i] > real[j])) for j in range(count))
                for i in range(count)
            ]
        )
        assert mean_maximum_rank_violation(list(real), list(sim)) == pytest.approx(expected)


def test_r_is_numpys_and_none_where_a_side_is_constant():
    real, sim = np.random.default_rng(2).uniform(size=(2, 7))
    assert pearson_r(list(real), list(sim)) == pytest.approx(np.corrcoef(real, sim)[0, 1])
    assert pearson_r([0.3, 0.3], [0.1, 0.2]) is None


def test_intervals_hold_the_estimate_and_shrink_with_more_policies():
    random = np.random.default_rng(3)
    widths = []
    for count in (6, 40):
        real = random.uniform(size=count)
        sim = np.clip(real + random.normal(0, 0.1, count), 0, 1)
        found = rank_agreement(list(real), list(sim))
        low, high = found.pearson_interval
        assert low <= found.pearson <= high and found.mmrv_interval[0] <= found.mmrv
        assert found == rank_agreement(list(real), list(sim)), "the seed is fixed"
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    # Many policies: the interval is that of Fisher's transformation.
    half = 1.96 / np.sqrt(40 - 3)
    fisher = np.tanh(np.arctanh(found.pearson) + np.array([-half, half]))
    assert found.pearson_interval == pytest.approx(tuple(fisher), abs=0.05)


def test_few_episodes_widen_the_intervals():
    real, sim = [0.9, 0.7, 0.5, 0.3, 0.1, 0.0], [0.8, 0.6, 0.5, 0.2, 0.1, 0.0]
    exact = rank_agreement(real, sim)
    many = rank_agreement(real, sim, real_episodes=[100_000] * 6, sim_episodes=[100_000] * 6)
    few = rank_agreement(real, sim, real_episodes=[10] * 6, sim_episodes=[10] * 6)
    assert exact.mmrv_interval == (0.0, 0.0)
    assert many.pearson_interval == pytest.approx(exact.pearson_interval, abs=0.02)
    assert few.mmrv_interval[1] > 0.05 and few.pearson_interval[0] < exact.pearson_interval[0]


def test_too_few_policies_and_ties_are_warned_of():
    assert rank_agreement([0.1, 0.5, 0.7, 0.8, 0.9], [0.2, 0.4, 0.6, 0.7, 0.9]).warnings == ()
    assert "only 4 policies" in rank_agreement([0.1, 0.5, 0.7, 0.9], [0.2, 0.4, 0.6, 0.9]).warnings[0]
    tied = rank_agreement([0.1, 0.5, 0.7, 0.8, 0.9], [0.4] * 5)
    assert tied.pearson is None and tied.pearson_interval is None
    assert tied.warnings == ("all simulated rates are equal: there is no ranking to agree with, and no r",)
    assert "all real rates are equal" in rank_agreement([0.4] * 5, [0.1, 0.5, 0.7, 0.8, 0.9]).warnings[0]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least two policies; found 1 real and 1 simulated"):
        pearson_r([0.1], [0.2])
    with pytest.raises(UserError, match="found 2 real and 3 simulated"):
        mean_maximum_rank_violation([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=r"success rates from 0 to 1; found 85\.0"):
        pearson_r([85, 20], [0.8, 0.2])
    with pytest.raises(UserError, match="2 numbers of episodes of at least 1; found "):
        rank_agreement([0.1, 0.2], [0.1, 0.2], real_episodes=[5])
