"""Networks: sizes, and that every position is conditioned on its own level."""

import pytest
import torch

from embodied.errors import UserError
from embodied.policies.networks.transformer import Transformer1d
from embodied.policies.networks.unet import Unet1d

SIZES = {"action_size": 7, "context_size": 38, "horizon": 16}
SMALL = {"widths": (64, 128, 256), "kernel": 5}


def awake(network):
    """Blocks that start as the identity hide what they see."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()


def make(kind):
    if kind == "transformer":
        return Transformer1d(**SIZES, width=32, depth=2, heads=4)
    return Unet1d(**SIZES, widths=(16, 32, 64), kernel=5, conditioning=kind)


def millions(network):
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def test_presets_have_the_promised_sizes():
    assert 1 <= millions(Transformer1d(**SIZES, width=128, depth=4, heads=4)) <= 5
    assert 1 <= millions(Unet1d(**SIZES, **SMALL, conditioning="per_position")) <= 5
    with torch.device("meta"):
        for paper in (
            Transformer1d(**SIZES, width=768, depth=8, heads=12),
            Unet1d(**SIZES, widths=(256, 512, 1024), kernel=5, conditioning="per_position"),
        ):
            assert 60 <= millions(paper) <= 70


@pytest.mark.parametrize("kind", ["transformer", "per_position", "global"])
def test_output_depends_on_all_three_inputs_and_not_on_the_batch(kind):
    network = awake(make(kind))
    noisy, level, context = torch.randn(4, 16, 7), torch.rand(4, 16), torch.randn(4, 38)
    with torch.no_grad():
        out = network(noisy, level, context)
        assert out.shape == noisy.shape
        torch.testing.assert_close(network(noisy[1:2], level[1:2], context[1:2]), out[1:2], atol=1e-5, rtol=1e-4)
        for other in ((noisy + 1, level, context), (noisy, 1 - level, context), (noisy, level, context + 1)):
            assert not torch.allclose(network(*other), out, atol=1e-4)


def test_a_level_acts_at_its_own_position_most():
    network = awake(make("transformer"))
    noisy, level, context = torch.randn(1, 16, 7), torch.full((1, 16), 0.5), torch.randn(1, 38)
    for position in (0, 7, 15):
        other = level.clone()
        other[0, position] = 0.9
        with torch.no_grad():
            moved = (network(noisy, other, context) - network(noisy, level, context)).abs().sum(-1)[0]
        assert int(moved.argmax()) == position
        assert (moved > 0).sum() > 1  # positions attend to each other


def test_the_unet_is_modulated_position_by_position_at_every_resolution():
    network, seen = make("per_position"), []
    for blocks in network.down_blocks:
        blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    level, context = torch.full((1, 16), 0.5), torch.randn(1, 38)
    other = level.clone()
    other[0, 9] = 0.9
    for levels in (level, other):
        network(torch.randn(1, 16, 7), levels, context)
    for depth, position in enumerate((9, 4, 2)):
        before, after = seen[depth], seen[depth + 3]
        moved = (before - after).abs().sum(1)[0]
        assert before.shape[-1] == 16 // 2**depth
        assert moved.nonzero().flatten().tolist() == [position]


def test_global_conditioning_ties_the_weights_to_one_horizon():
    args = torch.randn(1, 8, 7), torch.rand(1, 8), torch.randn(1, 38)
    assert make("per_position")(*args).shape == (1, 8, 7)
    with pytest.raises(RuntimeError):
        make("global")(*args)


def test_a_fresh_transformer_predicts_zero():
    assert (make("transformer")(torch.randn(2, 16, 7), torch.rand(2, 16), torch.randn(2, 38)) == 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Transformer1d(**SIZES, width=30, depth=1, heads=4),
            "width divisible by network.heads; found width 30",
        ),
        (lambda: Unet1d(**{**SIZES, "horizon": 14}, **SMALL, conditioning="global"), "horizon divisible by 4"),
        (lambda: Unet1d(**SIZES, widths=(12, 24), kernel=5, conditioning="global"), "widths divisible by 8"),
        (lambda: Unet1d(**SIZES, widths=(8, 16), kernel=4, conditioning="global"), "an odd network.kernel; found 4"),
        (lambda: Unet1d(**SIZES, **SMALL, conditioning="film"), "per_position or global; found film"),
    ],
)
def test_settings_that_cannot_work_are_named(build, message):
    with pytest.raises(UserError, match=message):
        build()
