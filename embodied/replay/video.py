"""An episode's cameras as a video, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from embodied.errors import UserError

CODEC = "libx264"
QUALITY = "18"  # constant rate factor: hardly to be told from the original


def write_video(path: Path, images: Mapping[str, np.ndarray], fps: float) -> None:
    """Write `path` (.mp4).

    Args:
        images: uint8 [T h w 3] a camera, all of one height.
        fps: frames a second: the control rate plays the episode at its own speed.

    Raises:
        UserError: no cameras, or PyAV is not installed.
    """
    if not images:
        raise UserError(
            expected="an episode with camera images for a video",
            found="no camera",
            remedy="name some in task.cameras, or record with recorded_as=rerun, which needs none",
        )
    try:
        import av
        import av.logging
    except ImportError as error:
        raise UserError(
            expected="PyAV, to write videos", found=str(error), remedy="pip install 'embodied-policies[lerobot]'"
        ) from error
    from fractions import Fraction

    av.logging.set_libav_level(av.logging.ERROR)
    frames = np.concatenate(list(images.values()), axis=2)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # the codec wants even sides
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": QUALITY}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
