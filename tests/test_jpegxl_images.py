"""UMI's images: JPEG XL in chunks of Zarr v2, against files that imagecodecs' own encoder wrote."""

import json

import numpy as np
import pytest

from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.foreign_episodes import Stated
from embodied.datasets.jpegxl_images import CODEC_ID, MOST_PIXELS, image_size
from embodied.datasets.replay_buffer_zarr import import_replay_buffer
from embodied.datasets.zarr_v2_arrays import ZarrV2Array
from embodied.errors import UserError

imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'umi' is not installed")

# As UMI's replay buffer configures its codec.
UMI_CODEC = {
    "id": "imagecodecs_jpegxl",
    "effort": 3,
    "distance": 0.3,
    "decodingspeed": 1,
    "level": 99,
    "lossless": False,
    "index": None,
    "keeporientation": None,
    "numthreads": 1,
    "photometric": None,
    "planar": None,
    "usecontainer": None,
}


def made_images(count, height=24, width=40):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_umi(folder, images, encode):
    """Poses of the hand and a camera; no array called action."""
    count = len(images)
    poses = np.random.default_rng(1).normal(size=(count, 3)).astype("<f4")
    (folder / "meta").mkdir(parents=True)
    arrays = {"meta/episode_ends": np.array([count // 2, count], "<i8"), "data/robot0_eef_pos": poses}
    for path in ("", "data", "meta"):
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / ".zgroup").write_text('{"zarr_format": 2}')
    for key, values in arrays.items():
        write_array(folder / key, values, None, [values.tobytes()], values.shape)
    chunks = [encode(image[None]) for image in images]
    write_array(folder / "data" / "camera0_rgb", images, UMI_CODEC, chunks, (1, *images.shape[1:]))
    return folder


def write_array(folder, values, compressor, chunks, shape):
    folder.mkdir()
    facts = {"shape": values.shape, "chunks": shape, "dtype": values.dtype.str, "compressor": compressor}
    facts |= {"fill_value": 0, "filters": None, "order": "C", "zarr_format": 2}
    (folder / ".zarray").write_text(json.dumps(facts))
    for number, chunk in enumerate(chunks):
        (folder / ".".join([str(number), *["0"] * (values.ndim - 1)])).write_bytes(chunk)


def lossless(image, **settings):
    return imagecodecs.jpegxl_encode(image, lossless=True, **settings)


@pytest.mark.parametrize("container", [False, True])
def test_lossless_images_come_back_to_the_last_bit(tmp_path, container):
    images = made_images(6)
    folder = write_umi(tmp_path / "umi.zarr", images, lambda image: lossless(image, usecontainer=container))
    import_replay_buffer(folder, tmp_path / "ours.zarr", Stated(control_hz=20, action=("robot0_eef_pos",)))
    store = EpisodeStore.open(tmp_path / "ours.zarr")
    assert np.array_equal(store.read("image/camera0_rgb"), images) and len(store) == 2


def test_images_as_umi_compresses_them_are_those_of_its_decoder(tmp_path):
    images = np.repeat(np.repeat(made_images(2, 6, 10), 8, axis=1), 8, axis=2)
    encode = {"effort": 3, "distance": 0.3, "decodingspeed": 1}
    folder = write_umi(tmp_path / "umi.zarr", images, lambda image: imagecodecs.jpegxl_encode(image, **encode))
    read = ZarrV2Array(folder, "data/camera0_rgb", "u").read(0, 2)
    assert 0 < np.abs(read.astype(int) - images).mean() < 4
    for number, image in enumerate(read):
        content = (folder / "data" / "camera0_rgb" / f"{number}.0.0.0").read_bytes()
        assert np.array_equal(imagecodecs.jpegxl_decode(content).reshape(image.shape), image)


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (24, 40), (224, 224), (96, 128), (9, 16), (256, 257), (600, 9000), (513, 8193), (300, 200)]
)
@pytest.mark.parametrize("container", [False, True])
def test_the_size_is_read_from_the_header(size, container):
    content = lossless(np.zeros((*size, 3), np.uint8), usecontainer=container)
    assert image_size(content) == size


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no JPEG XL image"),
        (b"\x89PNG\r\n", "no JPEG XL image"),
        (b"\xff\x0a" + b"\0" * 40, "cannot be decoded"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + b"\x00\x00\x00\x05jxlc\0", "no JPEG XL image"),
        (None, "cannot be decoded"),
    ],
    ids=["empty", "png", "zeros", "container", "truncated"],
)
def test_a_damaged_image_is_named(tmp_path, content, named):
    images = made_images(3)
    folder = write_umi(tmp_path / "umi.zarr", images, lossless)
    file = folder / "data" / "camera0_rgb" / "1.0.0.0"
    file.write_bytes(file.read_bytes()[:-30] if content is None else content)
    array = ZarrV2Array(folder, "data/camera0_rgb", "u")
    assert np.array_equal(array.read(0, 1), images[:1])
    with pytest.raises(UserError, match=f"the array data/camera0_rgb intact in .*; found .*{named}"):
        array.read(1, 2)


def test_an_image_of_another_size_is_named(tmp_path):
    folder = write_umi(tmp_path / "umi.zarr", made_images(2), lossless)
    (folder / "data" / "camera0_rgb" / "0.0.0.0").write_bytes(lossless(made_images(1, 8, 8)[0]))
    with pytest.raises(UserError, match="the array data/camera0_rgb intact"):
        ZarrV2Array(folder, "data/camera0_rgb", "u").read(0, 1)


def test_an_image_that_claims_more_pixels_than_any_camera_is_not_decoded(tmp_path):
    folder = write_umi(tmp_path / "umi.zarr", made_images(2), lossless)
    # Not small; height and width in 30 bits each, no ratio between them.
    bits = 0 | 3 << 1 | (2**29) << 3 | 0 << 33 | 3 << 36 | (2**29) << 38
    (folder / "data" / "camera0_rgb" / "0.0.0.0").write_bytes(b"\xff\x0a" + bits.to_bytes(9, "little") + b"\0" * 9)
    assert MOST_PIXELS < (2**29 + 1) ** 2
    with pytest.raises(UserError, match=f"found an image that claims {2**29 + 1}x{2**29 + 1} pixels"):
        ZarrV2Array(folder, "data/camera0_rgb", "u").read(0, 1)


def test_without_imagecodecs_the_remedy_names_the_extra(tmp_path, monkeypatch):
    folder = write_umi(tmp_path / "umi.zarr", made_images(2), lossless)
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    with pytest.raises(UserError, match=r"imagecodecs, to decode .*pip install 'embodied-policies\[umi\]'"):
        ZarrV2Array(folder, "data/camera0_rgb", "u")


def test_the_codec_has_the_name_that_umi_gives_it():
    import imagecodecs.numcodecs

    assert CODEC_ID == UMI_CODEC["id"] == imagecodecs.numcodecs.Jpegxl.codec_id
