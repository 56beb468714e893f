"""Backbones of timm as image encoders: with group norm, of every size that they take, weights from files alone."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file
from test_encoders import HISTORY, observations
from torch import nn
from toy_policies import CONV, SDP, TINY, toy_policy, toy_stream
from toy_specs import image_spec

from embodied.catalog import ENCODERS, make
from embodied.errors import UserError
from embodied.policies.encoders.timm import with_group_norm
from embodied.policies.policy_file import PolicyDescription, load_policy, save_policy

timm = pytest.importorskip("timm")

RESNET = {**CONV, "name": "timm", "model": "resnet18", "resize": 40}
VIT = {**RESNET, "model": "vit_tiny_patch16_224", "resize": 32}  # 2 by 2 patches
CHANNELS_LAST = {**RESNET, "model": "swin_tiny_patch4_window7_224", "resize": 56}
SPEC = image_spec("front")


def encoder(settings, spec=SPEC, **changes):
    torch.manual_seed(0)
    return make("encoder", ENCODERS, {**settings, **changes}, spec, HISTORY).eval()


def weights_of(name, path, drop=None, **options):
    """A file with fresh weights of a timm model, its classifier included, drawn with another seed."""
    torch.manual_seed(7)
    weights = timm.create_model(name, **options).state_dict()
    save_file({key: value for key, value in weights.items() if key != drop}, path)
    return str(path), weights


@pytest.mark.parametrize("settings", [RESNET, VIT], ids=["resnet", "vit"])
def test_every_pixel_row_of_the_context_shows_and_nothing_is_normalised_by_batch(settings):
    built = encoder(settings).train()
    assert not [m for m in built.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    state, images = observations(SPEC)
    context = built(state, images)
    assert context.shape == (3, built.context_size) and built.context_size == HISTORY * (4 + 8)
    alone = built(state[:1], {"front": images["front"][:1]})
    torch.testing.assert_close(alone[0], context[0], atol=1e-5, rtol=1e-4)
    other = built(state, {"front": 255 - images["front"]})
    differs = (other != context).any(0).unflatten(0, (HISTORY, -1))
    assert not differs[:, :4].any() and differs[:, 4:].all()


@pytest.mark.parametrize(
    ("settings", "maps"),
    [
        (RESNET, (512, 2, 2)),
        ({**RESNET, "resize": None}, (512, 2, 2)),
        (VIT, (192, 2, 2)),
        ({**VIT, "resize": 64}, (192, 4, 4)),
        ({**VIT, "model": "vit_small_patch16_dinov3", "resize": 64}, (384, 4, 4)),  # register tokens besides
    ],
    ids=["resnet", "resnet as it is", "vit", "larger vit", "dinov3"],
)
def test_maps_of_places(settings, maps):
    built = encoder(settings, image_spec("front", size=40))
    with torch.no_grad():
        assert built.towers[0][0](torch.zeros(1, 3, 36, 36)).shape == (1, *maps)


def test_token_maps_keep_the_image_s_directions():
    """A patch that changes shows at its own row and column before the blocks mix them."""
    built = encoder(VIT, resize=64)
    backbone = built.towers[0][0]
    backbone.model.blocks, backbone.model.norm = nn.Identity(), nn.Identity()
    image = torch.zeros(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 16:32, 48:64] = 1.0
    with torch.no_grad():
        differs = (backbone(image) != backbone(changed)).any(1)[0]
    assert differs.nonzero().tolist() == [[1, 3]]


def test_channels_last_maps_are_turned():
    backbone = encoder(CHANNELS_LAST).towers[0][0]
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 56, 56)).shape[:2] == (1, 768)


def test_images_are_normalised_as_the_model_was_trained():
    backbone, seen = encoder(RESNET).towers[0][0], []
    backbone.model.forward_features = lambda image: seen.append(image) or torch.zeros(1, 512, 2, 2)
    backbone(torch.stack([torch.full((40, 40), value) for value in (-1.0, 0.0, 1.0)])[None])
    mean, std = (torch.tensor(timm.create_model("resnet18").default_cfg[key]) for key in ("mean", "std"))
    torch.testing.assert_close(seen[0][0, :, 0, 0], (torch.tensor([0.0, 0.5, 1.0]) - mean) / std)


def test_group_norm_keeps_scale_and_shift_and_what_is_fused_into_it():
    model = timm.create_model("efficientnet_b0", num_classes=0)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    fused = sum(not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity) for norm in norms)
    with torch.no_grad():
        for norm in norms:
            norm.weight.normal_()
            norm.bias.normal_()
    replaced = [m for m in with_group_norm(model).modules() if isinstance(m, nn.GroupNorm)]
    assert len(replaced) == len(norms) and fused > 0
    for group, batch in zip(replaced, norms, strict=True):
        assert torch.equal(group.weight, batch.weight) and torch.equal(group.bias, batch.bias)
        assert group.num_channels % group.num_groups == 0 and group.eps == batch.eps
    active = sum(type(m) is nn.SiLU or type(m).__name__ in ("SiLU", "Swish") for m in model.modules())
    assert active >= fused
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("settings", [RESNET, VIT], ids=["resnet", "vit"])
def test_weights_come_from_a_file(tmp_path, settings):
    options = {"img_size": 32} if settings is VIT else {}
    path, weights = weights_of(settings["model"], tmp_path / "weights.safetensors", **options)
    model = encoder(settings, weights=path).towers[0][0].model
    ours = dict(model.named_parameters())
    assert ours
    for name, value in ours.items():
        # with_group_norm may have put a norm into a sequence: `bn1.0.weight`
        key = name if name in weights else ".".join(part for part in name.split(".") if part != "0")
        assert torch.equal(value, weights[key]), name


def test_a_checkpoint_is_read_without_the_file_that_its_training_began_with(tmp_path):
    path, _ = weights_of("resnet18", tmp_path / "weights.safetensors")
    settings = {**RESNET, "weights": path, "sha256": "0"}
    policy = toy_policy(SDP, spec=SPEC, encoder=settings)
    save_policy(tmp_path, policy, PolicyDescription(SPEC, SDP, TINY, {}, {}, 0, {}, settings))
    (tmp_path / "weights.safetensors").unlink()
    loaded, description = load_policy(tmp_path)
    assert description.encoder == settings
    stream = toy_stream(0, 2, SPEC)
    assert torch.equal(loaded.encode([stream]), policy.encode([stream]))


def test_fresh_weights_are_the_seed_s():
    one, same = (dict(encoder(RESNET).named_parameters()) for _ in range(2))
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_weights_that_cannot_be_used_are_named(tmp_path):
    remedy = "name a safetensors file of timm's resnet18 with encoder.weights, or null for fresh weights"
    missing = tmp_path / "nowhere.safetensors"
    with pytest.raises(UserError, match=f"safetensors weights at {missing}; found No such file.*; {remedy}"):
        encoder(RESNET, weights=str(missing))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"pickle")
    with pytest.raises(UserError, match=f"safetensors weights at {damaged}; found .*; {remedy}"):
        encoder(RESNET, weights=str(damaged))
    other, _ = weights_of("resnet34", tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=f"weights of timm's resnet18 in {other}; found .*Unexpected key.*; {remedy}"):
        encoder(RESNET, weights=other)
    partial, _ = weights_of("resnet18", tmp_path / "partial.safetensors", drop="layer1.0.conv1.weight")
    with pytest.raises(UserError, match=r"found .*Missing key.*layer1.0.conv1.weight"):
        encoder(RESNET, weights=partial)
    larger, _ = weights_of("vit_tiny_patch16_224", tmp_path / "larger.safetensors")
    with pytest.raises(UserError, match="found .*size mismatch for pos_embed"):
        encoder(VIT, weights=larger)


def test_models_and_sizes_that_do_not_exist_are_named(monkeypatch):
    with pytest.raises(UserError, match="a timm model in encoder.model; found 'resnet81'; the nearest: .*resnet18"):
        encoder(RESNET, model="resnet81")
    with pytest.raises(UserError, match="found 'hf-hub:timm/resnet18.a1_in1k'"):
        encoder(RESNET, model="hf-hub:timm/resnet18.a1_in1k")
    with pytest.raises(UserError, match="maps of images of 10 by 10 .*; found encoder.model=vit.*set encoder.resize"):
        encoder(VIT, resize=10)
    with pytest.raises(UserError, match="encoder.resize a whole number of at least 1; found 0; choose 224, or null"):
        encoder(RESNET, resize=0)
    with pytest.raises(UserError, match="encoder.resize a whole number of at least 1; found 2.5"):
        encoder(RESNET, resize=2.5)
    with pytest.raises(UserError, match="a timm model in encoder.model; found 'None'"):
        encoder(RESNET, model=None)
    with pytest.raises(UserError, match="feature map of several places for camera 'front'; found 1 by 1"):
        encoder(RESNET, resize=32)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="the package timm for encoder=timm; found .*; pip install .*resnet18_gn"):
        encoder(RESNET)
