"""Observation encoders: what they see, crops and spatial softmax in closed form, and every setting that cannot work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from toy_policies import CONV, toy_image
from toy_specs import image_spec, toy_spec

from embodied.catalog import ENCODERS, STATE_ENCODER, make
from embodied.errors import UserError
from embodied.policies.encoders.image_encoder import SpatialSoftmax, centre_crop, random_crop, to_unit_range

HISTORY = 2
# Resnet maps of 24 pixels would be single ones.
SIZES = {"conv_small": 24, "resnet18_gn": 40}
IMAGE_ENCODERS = {name: {**CONV, "name": name} for name in SIZES}


def encoder(settings=CONV, spec=None, history=HISTORY, **changes):
    torch.manual_seed(0)
    return make("encoder", ENCODERS, {**settings, **changes}, spec or image_spec(), history).eval()


def observations(spec, batch=3, seed=0):
    """Normalised state [B T S] and images, at random."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(batch, HISTORY, spec.state_size, generator=generator)
    images = {c.name: torch.from_numpy(toy_image(c, generator, batch, HISTORY)) for c in spec.cameras}
    return state, images


def numbered_images(count, height, width):
    """Images whose pixels tell the image (channel 0), the row (1) and the column (2)."""
    image = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    image[..., 0] = torch.arange(count)[:, None, None]
    image[..., 1] = torch.arange(height)[None, :, None]
    image[..., 2] = torch.arange(width)[None, None, :]
    return image


class TestSpatialSoftmax:
    def test_a_high_peak_gives_its_coordinates(self):
        height, width = 5, 9
        for row in range(height):
            for column in range(width):
                maps = torch.zeros(1, 2, height, width)
                maps[0, 0, row, column] = 200.0
                maps[0, 1, height - 1 - row, width - 1 - column] = 200.0
                x, y = column / (width - 1) * 2 - 1, row / (height - 1) * 2 - 1
                torch.testing.assert_close(SpatialSoftmax()(maps), torch.tensor([[x, -x, y, -y]]))

    def test_a_uniform_map_gives_the_middle(self):
        torch.testing.assert_close(SpatialSoftmax()(torch.full((2, 3, 4, 7), 1.5)), torch.zeros(2, 6))

    def test_two_peaks_are_weighed_by_the_softmax(self):
        maps = torch.full((1, 1, 1, 3), -1e4)
        maps[0, 0, 0, 0], maps[0, 0, 0, 2] = 0.0, np.log(3.0)
        torch.testing.assert_close(SpatialSoftmax()(maps), torch.tensor([[0.5, 0.0]]))

    def test_sharpness_divides_the_temperature_and_spread_widens_the_image(self):
        maps = torch.full((1, 1, 1, 3), -1e4)
        maps[0, 0, 0, 0], maps[0, 0, 0, 2] = 0.0, np.log(3.0) / 10
        torch.testing.assert_close(SpatialSoftmax(sharpness=10.0)(maps), torch.tensor([[0.5, 0.0]]))
        torch.testing.assert_close(SpatialSoftmax(10.0, spread=3.0)(maps), torch.tensor([[1.5, 0.0]]))

    def test_places_are_exact_whatever_the_precision_of_the_rest(self):
        """Under autocast a product of matrices would round them to 8 bits, half a pixel of a map of 100."""
        maps = torch.zeros(1, 1, 3, 300)
        maps[..., 1, 201] = 100.0
        with torch.autocast("cpu", torch.bfloat16):
            places = SpatialSoftmax()(maps.bfloat16())
        assert places.dtype == torch.float32
        torch.testing.assert_close(places, torch.tensor([[201 / 299 * 2 - 1, 0.0]]), atol=1e-6, rtol=0)


class TestCrops:
    def test_the_centre_crop_is_a_slice(self):
        image = numbered_images(2, 10, 13)
        assert torch.equal(centre_crop(image, 6, 8), image[:, 2:8, 2:10])
        assert torch.equal(centre_crop(image, 10, 13), image)

    def test_a_random_crop_is_a_slice_of_its_own_image(self):
        image = numbered_images(60, 10, 13)
        crop = random_crop(image, 6, 8, torch.Generator().manual_seed(0))
        assert crop.shape == (60, 6, 8, 3) and crop.dtype == torch.uint8
        for index in range(60):
            number, top, left = crop[index, 0, 0].tolist()
            assert number == index
            assert torch.equal(crop[index], image[index, top : top + 6, left : left + 8])

    def test_every_place_is_drawn_about_equally_often(self):
        crop = random_crop(numbered_images(1, 8, 7).repeat(12000, 1, 1, 1), 6, 4, torch.Generator().manual_seed(0))
        counts = torch.zeros(3, 4)
        counts.index_put_((crop[:, 0, 0, 1].long(), crop[:, 0, 0, 2].long()), torch.ones(12000), accumulate=True)
        assert counts.min() > 850 and counts.max() < 1150  # 1000 each, 5 standard deviations

    def test_the_generator_decides_alone(self):
        image = numbered_images(50, 10, 13)
        torch.manual_seed(1)
        one = random_crop(image, 6, 8, torch.Generator().manual_seed(3))
        torch.manual_seed(2)
        again = random_crop(image, 6, 8, torch.Generator().manual_seed(3))
        other = random_crop(image, 6, 8, torch.Generator().manual_seed(4))
        assert torch.equal(one, again) and not torch.equal(one, other)

    @pytest.mark.parametrize(("crop", "kept"), [(1.0, 96), (0.917, 88), (0.9, 86), (0.001, 1)])
    def test_the_share_that_is_kept(self, crop, kept):
        built = encoder()
        camera = dataclasses.replace(built.cameras[0], height=96, width=96)
        built.crop = crop
        assert built.crop_size(camera) == (kept, kept)


def test_pixels_become_minus_one_to_one_with_channels_first():
    image = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    torch.testing.assert_close(to_unit_range(image), torch.tensor([-1.0, 1.0, -0.6]).view(1, 3, 1, 1))


@pytest.mark.parametrize("settings", IMAGE_ENCODERS.values(), ids=IMAGE_ENCODERS)
class TestEveryImageEncoder:
    @pytest.fixture
    def spec(self, settings):
        return image_spec(size=SIZES[settings["name"]])

    def test_the_context_has_the_promised_size(self, settings, spec):
        built = encoder(settings, spec)
        context = built(*observations(spec))
        assert context.shape == (3, built.context_size) and built.context_size == HISTORY * (4 + 2 * 8)
        assert context.dtype == torch.float32 and context.isfinite().all()
        assert built(*observations(spec, batch=1)).shape == (1, built.context_size)

    def test_no_batch_norm(self, settings, spec):
        modules = list(encoder(settings, spec).modules())
        assert not [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert [module for module in modules if isinstance(module, nn.GroupNorm)]

    def test_samples_do_not_see_each_other(self, settings, spec):
        built = encoder(settings, spec).train()
        state, images = observations(spec)
        together = built(state, images)
        for index in range(3):
            alone = built(state[index : index + 1], {n: image[index : index + 1] for n, image in images.items()})
            torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-4)

    def test_every_camera_frame_and_vector_shows(self, settings, spec):
        built = encoder(settings, spec)
        state, images = observations(spec)
        other_state, other_images = observations(spec, seed=1)
        base = built(state, images).unflatten(1, (HISTORY, -1))
        for frame in range(HISTORY):
            for place, camera in enumerate(spec.cameras):
                changed = {name: image.clone() for name, image in images.items()}
                changed[camera.name][:, frame] = other_images[camera.name][:, frame]
                differs = (built(state, changed).unflatten(1, (HISTORY, -1)) != base).any(0)
                expected = torch.zeros_like(differs)
                expected[frame, 4 + 8 * place : 4 + 8 * (place + 1)] = True
                assert torch.equal(differs, expected)
        shown = built(other_state, images).unflatten(1, (HISTORY, -1))
        assert torch.equal(shown[..., :4], other_state) and torch.equal(shown[..., 4:], base[..., 4:])

    def test_each_camera_has_weights_of_its_own(self, settings, spec):
        built = encoder(settings, spec)
        assert len(built.towers) == 2
        sizes = [sum(weight.numel() for weight in tower.parameters()) for tower in built.towers]
        assert sizes[0] == sizes[1] and sum(sizes) == sum(weight.numel() for weight in built.parameters())
        state, images = observations(spec)
        images["wrist"] = images["front"]
        front, wrist = built(state, images).unflatten(1, (HISTORY, -1))[..., 4:].split(8, dim=-1)
        assert not torch.allclose(front, wrist)

    def test_each_frame_of_each_camera_is_shifted_by_itself_in_training(self, settings, spec):
        built = encoder(settings, spec)
        state, images = observations(spec, batch=1)
        images = {name: image[:, :1].repeat(6, HISTORY, 1, 1, 1) for name, image in images.items()}
        state = state[:, :1].repeat(6, HISTORY, 1)
        still = built(state, images).reshape(12, -1)
        torch.testing.assert_close(still, still[:1].expand(12, -1), atol=1e-5, rtol=1e-4)
        moved = built(state, images, torch.Generator().manual_seed(0)).reshape(12, -1)[:, 4:].split(8, dim=1)
        for camera in moved:
            assert len({tuple(np.round(row.tolist(), 4)) for row in camera.detach()}) > 4
        again = built(state, images, torch.Generator().manual_seed(0)).reshape(12, -1)
        assert torch.equal(torch.cat(moved, 1), again[:, 4:])


def test_crop_1_leaves_nothing_to_chance():
    built, seen = encoder(crop=1.0), observations(image_spec())
    assert torch.equal(built(*seen), built(*seen, torch.Generator().manual_seed(0)))


def test_the_small_backbone_has_the_size_that_the_docs_state():
    built = encoder({**CONV, "keypoints": 32, "features": 64}, image_spec("front", size=96))
    assert sum(weight.numel() for weight in built.parameters()) == pytest.approx(0.105e6, rel=0.01)
    with torch.no_grad():
        assert built.towers[0][0](torch.zeros(1, 3, 86, 86)).shape == (1, 64, 11, 11)


def test_the_resnet_has_the_size_that_the_docs_state():
    built = encoder({**CONV, "name": "resnet18_gn", "keypoints": 32, "features": 64}, image_spec("front", size=96))
    assert sum(weight.numel() for weight in built.parameters()) == pytest.approx(11.2e6, rel=0.01)
    with torch.no_grad():
        assert built.towers[0][0](torch.zeros(1, 3, 86, 86)).shape == (1, 512, 3, 3)


def test_the_order_of_names_means_nothing():
    one = encoder(state=["goal", "point"], cameras=["wrist", "front"])
    assert [vector.name for vector in one.state] == ["point", "goal"]
    assert [camera.name for camera in one.cameras] == ["front", "wrist"]
    seen = observations(image_spec())
    assert torch.equal(one(*seen), encoder()(*seen))


def test_the_encoder_of_state_lays_the_history_side_by_side():
    built = encoder(STATE_ENCODER, toy_spec())
    state, _ = observations(toy_spec())
    assert built.context_size == 8 and list(built.parameters()) == []
    assert torch.equal(built(state, {}), torch.cat([state[:, 0], state[:, 1]], dim=1))


BAD_SETTINGS = {
    "no crop": ({"crop": 0.0}, "expected encoder.crop above 0 and at most 1; found 0.0; choose 0.9"),
    "crop above 1": ({"crop": 1.1}, "encoder.crop above 0 and at most 1; found 1.1"),
    "negative crop": ({"crop": -0.5}, "encoder.crop above 0 and at most 1; found -0.5"),
    "no keypoints": ({"keypoints": 0}, "encoder.keypoints of at least 1; found 0; raise it"),
    "no features": ({"features": 0}, "encoder.features of at least 1; found 0; raise it"),
    "unknown camera": ({"cameras": ["frnt"]}, "a camera of task .*; found 'frnt' in encoder.cameras; .*'front'"),
    "unknown state": ({"state": ["gaol"]}, "a state vector of task .*; found 'gaol' in encoder.state; .*'goal'"),
    "camera twice": ({"cameras": ["front", "front"]}, "once in encoder.cameras; found 'front' twice; name it once"),
    "state twice": ({"state": ["goal", "point", "goal"]}, "once in encoder.state; found 'goal' twice"),
    "camera as text": ({"cameras": "front"}, r"a list of names .*; found 'front'; write encoder.cameras=\[front\]"),
    "state as text": ({"state": "goal"}, r"a list of names .*; found 'goal'; write encoder.state=\[goal\]"),
    "state as a number": ({"state": 3}, r"a list of names .*; found '3'; write encoder.state=\[name, ...\]"),
    "no state": ({"state": []}, "at least one state vector in encoder.state; found none; name some of point, goal"),
    "no camera": ({"cameras": []}, "at least one camera .*; found none; .*encoder.cameras, or set encoder=state"),
    "unknown setting": ({"keypoint": 3}, "settings that encoder 'conv_small' takes: .*keypoints.*found .*'keypoint'"),
    "unknown name": ({"name": "conv_smal"}, "the name of an encoder; found 'conv_smal'; did you mean 'conv_small'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        encoder(**changes)


def test_tasks_that_do_not_go_with_an_encoder_are_named():
    with pytest.raises(UserError, match=r"at least one camera .*; found none of task toy/reach; .*encoder=state"):
        encoder(CONV, toy_spec())
    with pytest.raises(UserError, match="without cameras for encoder=state.*; found cameras front, wrist; set encoder"):
        encoder(STATE_ENCODER, image_spec())


@pytest.mark.parametrize(("name", "size"), [("resnet18_gn", 24), ("conv_small", 8), ("conv_small", 1)])
def test_images_too_small_for_a_map_are_refused(name, size):
    """A spatial softmax over one place says nothing: the policy would be blind and nobody would know."""
    with pytest.raises(UserError, match=f"feature map.*camera 'front'.*found .*{size} by {size}.*camera_size"):
        encoder(CONV, image_spec(size=size), name=name)
