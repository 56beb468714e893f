"""Executors: what every one of them must do, closed forms of blending, and alignment in time."""

import dataclasses
import math
from importlib import resources

import numpy as np
import pytest
from omegaconf import OmegaConf
from toy_policies import DIFFUSION, SDP, toy_policy
from toy_specs import ReachTask, absolute_spec, toy_spec

from embodied.catalog import EXECUTORS, in_words, make_executor, names
from embodied.errors import MisfitError, UserError
from embodied.evaluation.episodes import run_episode
from embodied.executors.chunk import ChunkExecutor
from embodied.executors.temporal_ensembling import TemporalEnsemblingExecutor
from embodied.executors.weighted_overlap import WeightedOverlapExecutor
from embodied.types import ActionChunk, Preview

SPEC = toy_spec().action
DT_S = 0.1
AHEAD, BEYOND = 4, 4  # actions of a chunk, and of its preview


def settings(name):
    """Those of conf/executor, as the command has them."""
    text = (resources.files("embodied.conf") / "executor" / f"{name}.yaml").read_text()
    return OmegaConf.to_container(OmegaConf.create(text))


@dataclasses.dataclass
class PolicyOfExecutors:
    """As much of a policy as an executor is made for."""

    spec: object = dataclasses.field(default_factory=toy_spec)
    inference_delay: int = 0


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return make_executor(settings(request.param), PolicyOfExecutors())


def chunk(values, step=0, beyond=(), levels=None, dt_s=DT_S):
    """Actions from this control step on, each of three equal numbers or whole."""
    values, beyond = (
        np.array([np.broadcast_to(v, 3) for v in rows], np.float32).reshape(-1, 3) for rows in (values, beyond)
    )
    levels = np.zeros(len(beyond)) if levels is None else levels
    return ActionChunk(values, step * DT_S, dt_s, preview=Preview(beyond, np.asarray(levels, np.float32)))


def random_chunk(generator, step=0):
    values = generator.uniform(-1.5, 1.5, (AHEAD + BEYOND, 3))
    return chunk(values[:AHEAD], step, values[AHEAD:])


def driven(executor, chunks_by_step, steps):
    """The executor's actions [steps A]; each chunk is taken before the action of its step."""
    actions = []
    for t in range(steps):
        if t in chunks_by_step:
            executor.take(chunks_by_step[t])
        actions.append(executor.next_action(t * DT_S))
    return np.array(actions)


def asked(executor, seed, steps=12):
    """As an evaluation drives it: a new chunk whenever it needs one. Its actions, and the steps at which it asked."""
    generator = np.random.default_rng(seed)
    actions, steps_asked, executed = [], [], []
    executor.reset()
    for t in range(steps):
        if executor.needs_chunk(t * DT_S):
            steps_asked.append(t)
            executed.append(executor.executed(t * DT_S))
            executor.take(random_chunk(generator, t))
        assert executor.has_action(t * DT_S)
        actions.append(executor.next_action(t * DT_S))
    return np.array(actions), steps_asked, executed


def test_every_option_of_the_group_is_an_executor():
    files = (entry.name for entry in (resources.files("embodied.conf") / "executor").iterdir())
    assert sorted(file.removesuffix(".yaml") for file in files if file.endswith(".yaml")) == names(EXECUTORS)


def test_every_executor_hands_out_actions_within_bounds(executor):
    actions, _, _ = asked(executor, 0)
    assert actions.shape == (12, 3) and actions.dtype == np.float32 and np.abs(actions).max() <= 1.0


def test_every_executor_asks_before_the_first_action_and_not_twice_at_a_step(executor):
    assert executor.needs_chunk(0.0) and not executor.has_action(0.0) and executor.executed(0.0) is None
    executor.take(random_chunk(np.random.default_rng(0)))
    assert not executor.needs_chunk(0.0) and executor.executed(0.0) == 0
    _, steps, executed = asked(executor, 0)
    between = executor.steps_between_chunks(AHEAD)
    assert steps == list(range(0, 12, between)) and executed == [None] + [between] * (len(steps) - 1)


def test_every_executor_forgets_everything_on_reset(executor):
    fresh, _, _ = asked(executor, 1)
    asked(executor, 2)
    again, _, _ = asked(executor, 1)
    assert np.array_equal(fresh, again)
    executor.reset()
    assert executor.needs_chunk(0.0) and not executor.has_action(0.0) and executor.executed(0.0) is None


def test_every_executor_leaves_chunks_as_they_are(executor):
    given = random_chunk(np.random.default_rng(3))
    actions, beyond = given.actions.copy(), given.preview.actions.copy()
    driven(executor, {0: given}, AHEAD)
    assert np.array_equal(given.actions, actions) and np.array_equal(given.preview.actions, beyond)


def test_every_executor_says_when_there_is_nothing_to_execute(executor):
    with pytest.raises(UserError, match="found none; call take"):
        executor.next_action(0.0)
    executor.take(random_chunk(np.random.default_rng(0)))
    assert not executor.has_action((AHEAD + BEYOND) * DT_S) and executor.needs_chunk((AHEAD + BEYOND) * DT_S)
    with pytest.raises(UserError, match="found none; call take"):
        executor.next_action((AHEAD + BEYOND) * DT_S)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.full((4, 3), math.nan, np.float32)}, "finite actions; found nan in 'dx' of action 0"),
        ({"actions": np.zeros((4, 2), np.float32)}, r"3 values each \(dx, dy, grip\); found shape \(4, 2\)"),
        ({"actions": np.zeros((4,), np.float32)}, r"found shape \(4,\)"),
        ({"actions": np.zeros((0, 3), np.float32)}, r"found shape \(0, 3\)"),
        ({"start_s": math.nan}, "a start and a control period, in s; found start_s = nan, dt_s = 0.1"),
        ({"dt_s": 0.0}, "found start_s = 0.0, dt_s = 0.0"),
    ],
)
def test_every_executor_refuses_what_a_robot_must_not_get(executor, changes, message):
    bad = dataclasses.replace(random_chunk(np.random.default_rng(0)), **changes)
    with pytest.raises(UserError, match=message):
        executor.take(bad)
    assert executor.needs_chunk(0.0) and not executor.has_action(0.0), "nothing of it is kept"


@pytest.mark.parametrize("name", ["temporal_ensembling", "weighted_overlap"])
@pytest.mark.parametrize(
    ("preview", "message"),
    [
        (
            None,
            "clean actions beyond those of a chunk, for executor {}; found chunks without a preview; use executor=ch",
        ),
        (
            Preview(np.zeros((4, 3), np.float32), np.array([0.25, 0.5, 0.75, 1.0], np.float32)),
            r"found a preview with noise \(level 0.25\) from its action 0 on; use executor=chunk, or a policy",
        ),
        (
            Preview(np.array([[0, 0, 0], [0, math.inf, 0], [0, 0, 0], [0, 0, 0]], np.float32), np.zeros(4, np.float32)),
            "finite actions; found inf in 'dy' of predicted action 1",
        ),
        (Preview(np.zeros((4, 2), np.float32), np.zeros(4, np.float32)), r"3 values each .*; found shape \(4, 2\)"),
    ],
    ids=["none", "noisy", "infinite", "wrong size"],
)
def test_executors_that_look_ahead_need_a_clean_preview(name, preview, message):
    executor = make_executor(settings(name), PolicyOfExecutors())
    with pytest.raises(UserError, match=message.format(name)):
        executor.take(ActionChunk(np.zeros((4, 3), np.float32), 0.0, DT_S, preview=preview))


@pytest.mark.parametrize("name", ["temporal_ensembling", "weighted_overlap"])
def test_a_streaming_policy_is_refused_and_a_whole_horizon_is_not(name):
    task, config = ReachTask(), {**settings(name)}
    streaming, whole = toy_policy(SDP), toy_policy(DIFFUSION)
    with pytest.raises(MisfitError, match=r"found a preview with noise \(level 0.25\) from its action 0 on"):
        run_episode(task, streaming, 1, 0, executor=make_executor(config, streaming))
    rollout = run_episode(task, whole, 1, 0, executor=make_executor(config, whole))
    assert len(rollout.chunk_steps) == (40 if name == "temporal_ensembling" else 10)
    plain = run_episode(task, whole, 1, 0)
    assert not np.array_equal(rollout.episode.executed, plain.episode.executed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "chunkk"}, "the name of an executor; found 'chunkk'; did you mean 'chunk'"),
        ({"name": "chunk", "m": 0.1}, r"settings that executor 'chunk' takes: \(none\); found"),
        ({"name": "temporal_ensembling", "m": math.inf}, "executor.m a finite number; found inf"),
        ({"name": "temporal_ensembling", "m": True}, "executor.m a finite number; found True"),
        ({"name": "weighted_overlap", "overlap": -1}, "executor.overlap a whole number of at least 0; found -1"),
        ({"name": "weighted_overlap", "overlap": 1.5}, "executor.overlap a whole number of at least 0; found 1.5"),
        ({"name": "weighted_overlap"}, "settings that executor 'weighted_overlap' takes: .*overlap"),
    ],
)
def test_settings_that_cannot_work_are_named(config, message):
    with pytest.raises(UserError, match=message):
        make_executor(config, PolicyOfExecutors())


def test_an_executor_in_words():
    assert in_words(settings("temporal_ensembling")) == "temporal_ensembling m=0.01"
    assert in_words({"name": "chunk"}) == "chunk"


# The plain one.


def test_a_late_chunk_loses_its_first_actions_and_an_early_one_waits():
    executor = ChunkExecutor(SPEC, inference_delay=2)
    executor.take(chunk([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]))
    assert not executor.needs_chunk(0.3) and executor.needs_chunk(0.4) and executor.executed(0.4) == 4
    executor.take(chunk([0.6, 0.7, 0.8, 0.9], step=6))
    assert not executor.needs_chunk(0.4), "it waits for its time"
    values = [executor.next_action(t * DT_S)[0] for t in range(4, 8)]
    assert values == pytest.approx([0.4, 0.5, 0.6, 0.7])
    assert executor.needs_chunk(0.8) and executor.executed(0.8) == 4, "as after the first, which had two more"
    executor.take(chunk([-0.1, -0.2, -0.3, -0.4], step=8))  # as if it had come at step 10
    assert executor.next_action(1.0)[0] == pytest.approx(-0.3)


def test_jitter_of_less_than_half_a_period_changes_nothing():
    executor = ChunkExecutor(SPEC)
    executor.take(chunk([0.1, 0.2, 0.3]))
    assert [executor.next_action(t)[0] for t in (0.04, 0.06, 0.24)] == pytest.approx([0.1, 0.2, 0.3])


# Temporal ensembling.


def test_constant_predictions_come_back_unchanged():
    value = np.float32([0.3, -0.7, 1.0])
    executor = TemporalEnsemblingExecutor(SPEC, m=0.3)
    actions = driven(executor, {t: chunk([value] * 4, t, [value] * 4) for t in range(10)}, 10)
    assert np.array_equal(actions, np.tile(value, (10, 1)))


@pytest.mark.parametrize("m", [0.01, 0.0, 1.5, -0.5])
def test_two_chunks_are_weighed_as_in_the_paper(m):
    executor = TemporalEnsemblingExecutor(SPEC, m=m)
    actions = driven(executor, {0: chunk([0.0, 0.4], 0, [0.5]), 1: chunk([-0.2, 0.1], 1, [0.3])}, 4)
    oldest, newest = 1.0, math.exp(-m)
    assert actions[0, 0] == 0.0
    assert actions[1, 0] == pytest.approx((0.4 * oldest - 0.2 * newest) / (oldest + newest), abs=1e-7)
    assert actions[2, 0] == pytest.approx((0.5 * oldest + 0.1 * newest) / (oldest + newest), abs=1e-7)
    assert actions[3, 0] == pytest.approx(0.3), "the older chunk says nothing of this step"


def test_ensembling_is_algorithm_2_of_the_paper():
    """Written down anew: a table of what each chunk predicted for each step."""
    generator, steps, m = np.random.default_rng(5), 20, 0.1
    chunks = {t: random_chunk(generator, t) for t in range(steps)}
    table = np.full((steps, steps + AHEAD + BEYOND, 3), np.nan)
    expected = []
    for t, one in chunks.items():
        table[t, t : t + AHEAD + BEYOND] = np.clip(np.concatenate([one.actions, one.preview.actions]), -1, 1)
        known = table[~np.isnan(table[:, t, 0]), t]
        weights = np.exp(-m * np.arange(len(known)))
        expected.append((known * weights[:, None]).sum(0) / weights.sum())
    expected = np.array(expected)
    actions = driven(TemporalEnsemblingExecutor(SPEC, m=m), chunks, steps)
    np.testing.assert_allclose(actions[:, :2], expected[:, :2], atol=1e-6)
    assert np.array_equal(actions[:, 2], np.where(expected[:, 2] > 0, 1, -1))


def test_a_gripper_is_closed_or_open_and_goes_with_the_majority():
    executor = TemporalEnsemblingExecutor(SPEC, m=0.0)
    votes = {0: chunk([[0, 0, 1]] * 4), 1: chunk([[0, 0, -1]] * 4, 1), 2: chunk([[0, 0, -1]] * 4, 2)}
    assert driven(executor, votes, 3)[:, 2].tolist() == [1.0, -1.0, -1.0], "a tie is the lower end"
    far = TemporalEnsemblingExecutor(SPEC, m=0.0)
    far.take(chunk([[0, 0, 50.0]] * 4))
    far.take(chunk([[0, 0, -1]] * 4))
    far.take(chunk([[0, 0, -1]] * 4))
    assert far.next_action(0.0)[2] == -1.0, "beyond its bounds a prediction counts no more than at them"


def test_a_prediction_counts_for_the_steps_that_it_is_for_however_late_it_comes():
    executor = TemporalEnsemblingExecutor(SPEC, m=0.0)
    late = chunk([0.1, 0.2, 0.3, 0.4], step=1)
    actions = driven(executor, {0: chunk([0.0] * 4, 0, [0.0] * 4), 3: late}, 7)
    assert actions[:, 0] == pytest.approx([0, 0, 0, 0.3 / 2, 0.4 / 2, 0, 0])


def test_an_absurd_m_still_gives_a_mean():
    for m, expected in ((1e6, 0.5), (-1e6, -0.5)):
        executor = TemporalEnsemblingExecutor(SPEC, m=m)
        executor.take(chunk([0.5, 0.5]))
        executor.take(chunk([-0.5, -0.5]))
        assert executor.next_action(0.0)[0] == expected


def test_one_action_at_a_time_has_nothing_to_be_averaged():
    with pytest.raises(
        MisfitError, match="at least 2 actions predicted at a time, for executor temporal_ensembling; fou"
    ):
        TemporalEnsemblingExecutor(SPEC, m=0.01).take(chunk([0.1]))
    with pytest.raises(UserError, match="levels"):
        TemporalEnsemblingExecutor(SPEC, m=0.01).take(chunk([0.1], 0, [0.2, 0.3], levels=[0.0]))


def test_targets_are_averaged_as_they_are():
    executor = TemporalEnsemblingExecutor(absolute_spec().action, m=0.0)
    executor.take(chunk([[0.2, 0.4, 1.0]] * 2))
    executor.take(chunk([[0.4, 0.8, 1.0]] * 2))
    assert executor.next_action(0.0) == pytest.approx([0.3, 0.6, 1.0])


# Weighted overlap.


def test_without_overlap_it_is_the_plain_executor_bit_for_bit():
    generator = np.random.default_rng(7)
    chunks = {t: random_chunk(generator, t) for t in range(0, 40, AHEAD)}
    none = WeightedOverlapExecutor(SPEC, overlap=0)
    assert np.array_equal(driven(none, chunks, 40), driven(ChunkExecutor(SPEC), chunks, 40))
    none.reset()
    none.take(dataclasses.replace(chunks[0], preview=None))  # nor does it need a preview


def test_the_last_chunk_fades_out_linearly():
    first, second = chunk([0.0] * 4, 0, [0.8] * 4), chunk([0.4] * 4, 4, [0.0] * 4)
    actions = driven(WeightedOverlapExecutor(SPEC, overlap=3), {0: first, 4: second}, 8)
    assert actions[:4, 0].tolist() == [0.0] * 4
    assert actions[4:, 0] == pytest.approx([0.7, 0.6, 0.5, 0.4]), "3/4, 2/4, 1/4 and nothing of 0.8"


def test_a_gripper_is_blended_to_one_of_its_ends():
    first, second = chunk([[0, 0, 1]] * 4, 0, [[0, 0, 1]] * 4), chunk([[0, 0, -1]] * 4, 4, [[0, 0, -1]] * 4)
    actions = driven(WeightedOverlapExecutor(SPEC, overlap=4), {0: first, 4: second}, 8)
    assert actions[:, 2].tolist() == [1.0] * 6 + [-1.0] * 2, "4/5 and 3/5 of the old one, then 2/5 and 1/5"


def test_after_a_stand_still_nothing_is_blended():
    executor = WeightedOverlapExecutor(SPEC, overlap=3)
    driven(executor, {0: chunk([0.0] * 4, 0, [0.8] * 4)}, 4)
    executor.take(chunk([0.4] * 4, 6, [0.0] * 4))
    assert executor.next_action(0.6)[0] == executor.next_action(0.7)[0] == np.float32(0.4)


def test_overlap_is_limited_by_what_is_predicted():
    with pytest.raises(
        MisfitError, match="at least 4 actions predicted beyond a chunk's own 4, .* found 2; ask for less"
    ):
        WeightedOverlapExecutor(SPEC, overlap=4).take(chunk([0.0] * 4, 0, [0.0] * 2))
    with pytest.raises(MisfitError, match=r"found a preview with noise \(level 0.50\) from its action 2 on"):
        WeightedOverlapExecutor(SPEC, overlap=4).take(chunk([0.0] * 4, 0, [0.0] * 4, levels=[0, 0, 0.5, 1]))
    with pytest.raises(MisfitError, match="executor.overlap of at most 4, the actions of a chunk; found 5"):
        WeightedOverlapExecutor(SPEC, overlap=5).take(chunk([0.0] * 4, 0, [0.0] * 8))
    WeightedOverlapExecutor(SPEC, overlap=2).take(chunk([0.0] * 4, 0, [0.0] * 4, levels=[0, 0, 0.5, 1]))
