"""Actions in every representation: against definitions written with scipy, there and back, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from toy_specs import absolute_spec, arm_spec, toy_spec

from embodied.action_representation import ActionTransform
from embodied.errors import UserError
from embodied.types import ActionGroup, ActionSpec, TaskSpec

REPRESENTATIONS = ("absolute", "delta", "chunk_relative")
ROTATIONS = ("axis_angle", "rotation_6d")
# Of arm_spec's action: where its groups stand, and the turn as learned axis-angle, whose elements stand in order.
KNOBS, TURN, POSITION = [0, 4], [3, 1, 2], [5, 6, 7]
LEARNED_TURN = [1, 2, 3]


def transform(representation="as_recorded", rotation="as_recorded", spec=None):
    return ActionTransform.from_settings(spec or arm_spec(), {"representation": representation, "rotation": rotation})


def arm_chunks(seed, *leading, horizon=16, largest_turn=np.pi, dtype=np.float32):
    """Random actions [... H 8] of `arm_spec` with turns up to `largest_turn`, and flat states [... 8]."""
    random = np.random.default_rng(seed)
    actions = random.normal(size=(*leading, horizon, 8))
    turns = actions[..., TURN]
    angle = largest_turn * random.uniform(size=(*leading, horizon, 1)) ** 0.2
    actions[..., TURN] = turns / np.linalg.norm(turns, axis=-1, keepdims=True) * angle / 0.5
    return torch.from_numpy(actions.astype(dtype)), torch.from_numpy(random.normal(size=(*leading, 8)).astype(dtype))


def rotations_of(actions):
    return Rotation.from_rotvec(0.5 * actions[..., TURN].reshape(-1, 3).double().numpy())


def same_actions(found, expected, atol):
    """Equal but for the vector that stands for a rotation."""
    others = KNOBS + POSITION
    torch.testing.assert_close(found[..., others], expected[..., others], atol=atol, rtol=0)
    error = (rotations_of(found).inv() * rotations_of(expected)).magnitude()
    assert error.max() < 2 * atol


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_there_and_back(representation, rotation, leading):
    chosen = transform(representation, rotation)
    actions, state = arm_chunks(0, *leading)
    learned = chosen.encode(actions, chosen.anchors(state))
    assert learned.dtype == torch.float32 and learned.shape == (*leading, 16, 11 if rotation == "rotation_6d" else 8)
    assert chosen.size == learned.shape[-1]
    same_actions(chosen.decode(learned, chosen.anchors(state)), actions, atol=1e-5)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_there_and_back_in_float64_and_over_a_long_chunk(representation):
    chosen = transform(representation, "rotation_6d")
    actions, state = arm_chunks(1, 3, horizon=1000, dtype=np.float64)
    back = chosen.decode(chosen.encode(actions, chosen.anchors(state)), chosen.anchors(state))
    same_actions(back, actions, atol=1e-10)


@pytest.mark.parametrize("angle", [0.0, 1e-7, np.pi - 1e-6, np.pi])
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_no_turn_and_half_a_turn(representation, rotation, angle):
    chosen = transform(representation, rotation)
    actions, state = arm_chunks(2, 20)
    turns = actions[..., TURN]
    actions[..., TURN] = turns / turns.norm(dim=-1, keepdim=True) * (angle / 0.5)
    back = chosen.decode(chosen.encode(actions, chosen.anchors(state)), chosen.anchors(state))
    same_actions(back, actions, atol=1e-5)


def test_an_absolute_axis_angle_comes_back_as_the_same_numbers():
    """Below half a turn the vector itself returns, and not only the rotation."""
    chosen = transform("chunk_relative", "rotation_6d")
    actions, state = arm_chunks(3, 50, largest_turn=3.1)
    back = chosen.decode(chosen.encode(actions, chosen.anchors(state)), chosen.anchors(state))
    torch.testing.assert_close(back, actions, atol=2e-5, rtol=0)


def test_many_turns_in_one_direction():
    """40 turns in steps of 0.5 rad: each delta is that step, and none of it is lost on the way back."""
    steps = 500
    step = Rotation.from_rotvec([0.3, 0.0, 0.4])
    poses = [Rotation.identity()]
    for _ in range(steps):
        poses.append(poses[-1] * step)
    actions = torch.zeros(steps, 8)
    actions[:, TURN] = torch.from_numpy(Rotation.concatenate(poses[1:]).as_rotvec() / 0.5).float()
    state = torch.tensor([0.0, *Rotation.identity().as_quat(), 0.0, 0.0, 0.0])
    chosen = transform("delta")
    deltas = chosen.encode(actions, chosen.anchors(state))
    expected = torch.tensor([0.3, 0.0, 0.4]).expand(steps, 3) / 0.5
    torch.testing.assert_close(deltas[:, LEARNED_TURN], expected, atol=1e-5, rtol=0)
    same_actions(chosen.decode(deltas, chosen.anchors(state)), actions, atol=1e-4)


def test_differences_against_their_definition():
    """Turns multiply from the right, positions are subtracted along fixed axes, and both in the action's units."""
    actions, state = arm_chunks(4)
    turns, observed = rotations_of(actions), Rotation.from_quat(state[1:5].double().numpy())
    places = actions[:, POSITION].double().numpy()
    observed_place = state[5:].double().numpy() / 0.1
    for representation in ("delta", "chunk_relative"):
        chosen = transform(representation)
        learned = chosen.encode(actions, chosen.anchors(state))
        for t in range(16):
            first = t == 0 or representation == "chunk_relative"
            base, base_place = (observed, observed_place) if first else (turns[t - 1], places[t - 1])
            turn = Rotation.from_rotvec(0.5 * learned[t, LEARNED_TURN].double().numpy())
            assert (base * turn * turns[t].inv()).magnitude() < 1e-6
            np.testing.assert_allclose(base_place + learned[t, POSITION].double().numpy(), places[t], atol=1e-5)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_grippers_and_elements_without_a_group_stay_bit_for_bit(representation, rotation):
    chosen = transform(representation, rotation)
    actions, state = arm_chunks(5, 4)
    learned = chosen.encode(actions, chosen.anchors(state))
    knob = 7 if rotation == "rotation_6d" else 4
    assert torch.equal(learned[..., 0], actions[..., 0]) and torch.equal(learned[..., knob], actions[..., 4])
    back = chosen.decode(learned, chosen.anchors(state))
    assert torch.equal(back[..., KNOBS], actions[..., KNOBS])


def test_staying_where_one_is_is_no_difference():
    """The padding past an episode's end, the last action repeated, is the delta 'do not move'."""
    actions, state = arm_chunks(6)
    actions[10:] = actions[10]
    chosen = transform("delta")
    learned = chosen.encode(actions, chosen.anchors(state))
    torch.testing.assert_close(learned[11:, TURN + POSITION], torch.zeros(5, 6), atol=1e-7, rtol=0)


def test_as_recorded_is_nothing_at_all():
    for spec in (toy_spec(), absolute_spec(), arm_spec()):
        for settings in (None, {}, {"representation": spec.action.representation}):
            chosen = ActionTransform.from_settings(spec, settings)
            actions = torch.randn(2, 16, spec.action.size)
            assert chosen.is_identity and chosen.size == spec.action.size and chosen.anchors(torch.zeros(2, 4)) == ()
            assert chosen.encode(actions, ()) is actions and chosen.decode(actions, ()) is actions


def test_a_policy_s_label_tells_what_is_not_as_recorded():
    assert transform().suffix == transform("absolute", "axis_angle").suffix == ""
    assert transform("delta").suffix == " delta"
    assert transform("absolute", "rotation_6d").suffix == " rotation_6d"
    assert transform("chunk_relative", "rotation_6d").suffix == " chunk_relative rotation_6d"


def test_mixed_precision_leaves_rotations_alone():
    chosen = transform("chunk_relative", "rotation_6d")
    actions, state = arm_chunks(11, 3)
    expected = chosen.encode(actions, chosen.anchors(state))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(chosen.encode(actions, chosen.anchors(state)), expected)


def recorded_6d():
    action = arm_spec().action
    names = ("a1", "a2", "a3", "b1", "b2", "b3")
    action = ActionSpec(
        elements=("gripper", *names, "knob", "x", "y", "z"),
        units=("",) * 11,
        low=(-9.0,) * 11,
        high=(9.0,) * 11,
        binary=(True, *(False,) * 10),
        representation="absolute",
        rotation="rotation_6d",
        groups=(action.groups[0], ActionGroup("rotation", "rotation", names, reference="hand_quaternion")),
    )
    return dataclasses.replace(arm_spec(), action=action)


def test_actions_recorded_as_6d_can_be_learned_as_axis_angle():
    chosen = transform("chunk_relative", "axis_angle", recorded_6d())
    actions, state = arm_chunks(7, 5)
    same = transform("absolute", "rotation_6d").encode(actions, ())
    learned = chosen.encode(same, chosen.anchors(state))
    assert learned.shape == (5, 16, 8)
    torch.testing.assert_close(chosen.decode(learned, chosen.anchors(state)), same, atol=1e-5, rtol=0)


def test_recorded_deltas_may_change_their_rotations():
    """robosuite's: 6-D of a turn of at most half a radian a component, and the same numbers back."""
    action = dataclasses.replace(arm_spec().action, representation="delta")
    spec = dataclasses.replace(arm_spec(), action=action)
    chosen = transform("delta", "rotation_6d", spec)
    actions, _ = arm_chunks(8, 5, largest_turn=0.8)
    learned = chosen.encode(actions, ())
    assert not chosen.is_relative and learned.shape == (5, 16, 11)
    expected = rotations_of(actions).as_matrix()[:, :, 0].reshape(5, 16, 3)
    np.testing.assert_allclose(learned[..., 1:4], expected, atol=1e-6)
    torch.testing.assert_close(chosen.decode(learned, ()), actions, atol=1e-5, rtol=0)


def test_a_change_of_base_keeps_what_is_commanded():
    chosen = transform("chunk_relative", "rotation_6d")
    actions, state = arm_chunks(9, dtype=np.float64)
    _, newer = arm_chunks(10, dtype=np.float64)
    old, new = chosen.anchors(state), chosen.anchors(newer)
    matrix, shift = chosen.change_of_base(old, new)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(11, dtype=torch.float64), atol=1e-14, rtol=0)
    moved = chosen.encode(actions, old) @ matrix.T + shift
    torch.testing.assert_close(moved, chosen.encode(actions, new), atol=1e-12, rtol=0)
    torch.testing.assert_close(chosen.change_of_base(old, old)[0], torch.eye(11, dtype=torch.float64))


def test_a_change_of_base_needs_6d_rotations():
    chosen = transform("chunk_relative", "axis_angle")
    anchors = chosen.anchors(torch.randn(8))
    with pytest.raises(UserError, match="rotation_6d, in which a change of the reference is a linear map; found axis"):
        chosen.change_of_base(anchors, anchors)


def without_references(spec):
    groups = tuple(dataclasses.replace(group, reference=None) for group in spec.action.groups)
    return dataclasses.replace(spec, action=dataclasses.replace(spec.action, groups=groups))


def without_groups(spec, groups=None):
    return dataclasses.replace(spec, action=dataclasses.replace(spec.action, groups=groups))


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (arm_spec(), {"representation": "chunk-relative"}, "found 'chunk-relative'; did you mean 'chunk_relative'"),
        (arm_spec(), {"rotation": "rotation6d"}, "found 'rotation6d'; did you mean 'rotation_6d'"),
        (arm_spec(), {"representations": "delta"}, "a setting of policy.actions; .* did you mean 'representation'"),
        (arm_spec(), "delta", "policy.actions with representation and rotation; found 'delta'"),
        (toy_spec(), {"representation": "absolute"}, "recorded as deltas; found absolute; record absolute targets"),
        (toy_spec(), {"representation": "chunk_relative"}, "recorded as deltas; found chunk_relative"),
        (absolute_spec(), {"rotation": "rotation_6d"}, "which elements are a rotation; found none; .*=as_recorded"),
        (without_groups(arm_spec()), {"representation": "delta"}, "a position or a rotation, .* found none; set"),
        (without_groups(arm_spec(), ()), {"rotation": "rotation_6d"}, "which elements are a rotation; found none"),
        (without_references(arm_spec()), {"representation": "delta"}, "found none for position, rotation; set"),
    ],
)
def test_what_cannot_be_made_is_refused(spec, settings, message):
    with pytest.raises(UserError, match=message):
        ActionTransform.from_settings(spec, settings)


def changed_group(index, **changes):
    groups = list(arm_spec().action.groups)
    groups[index] = dataclasses.replace(groups[index], **changes)
    return without_groups(arm_spec(), tuple(groups))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (changed_group(0, elements=("x", "y", "w")), "in no other group in the action group 'position' .* found w;"),
        (changed_group(0, elements=("x", "y", "turn_x")), "the action group 'rotation' of task toy/arm; found turn_x"),
        (changed_group(0, elements=("x", "y", "x")), "'position' of task toy/arm; found x"),
        (changed_group(0, elements=("x", "y", "gripper")), "not binary .* found gripper"),
        (changed_group(1, elements=("turn_x", "turn_y")), "a rotation as axis_angle in .* found 2"),
        (changed_group(1, kind="orientation"), "a position or a rotation in .* found 'orientation'"),
        (changed_group(0, scale=0.0), "a scale above 0 .* found 0"),
        (changed_group(0, reference="hand_positon"), "found 'hand_positon' .did you mean 'hand_position'"),
        (changed_group(0, reference="opening"), "a reference of 3 values .* found 1 in 'opening'"),
        (changed_group(1, reference="hand_position"), "in 'quaternion xyzw' .* found 3 values in 'm'"),
    ],
)
def test_groups_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        ActionTransform.from_settings(spec, None)


class TestSpecsOnDisk:
    def test_groups_travel_in_json(self):
        for spec in (toy_spec(), absolute_spec(), arm_spec()):
            assert TaskSpec.from_json(spec.to_json()) == spec

    def test_a_spec_written_before_there_were_groups_is_read_and_fits_one_that_states_them(self):
        data = arm_spec().to_json()
        del data["action"]["groups"]
        old = TaskSpec.from_json(data)
        assert old.action.groups is None
        assert old.differences(arm_spec()) == [] and arm_spec().differences(old) == []

    def test_groups_that_differ_are_named(self):
        other = changed_group(0, scale=0.2)
        assert [line.partition(":")[0] for line in arm_spec().differences(other)] == ["action.groups.position"]
