"""A small convolutional backbone for training on a CPU: four convolutions with group norm."""

from __future__ import annotations

from torch import nn

from embodied.policies.encoders.image_encoder import ImageEncoder

# (channels, kernel, stride): the first as large as Atari networks have it (Mnih et al. 2015), since its cost is pixels.
LAYERS = ((32, 8, 4), (64, 3, 2), (64, 3, 1), (64, 3, 1))
GROUP_CHANNELS = 8


class ConvSmallEncoder(ImageEncoder):
    """See `ImageEncoder`; maps are about 11 by 11 for images of 96 by 96.

    Its trainings are short. From Diffusion Policy's flat start keypoints take thousands of steps to find anything: a
    sharper and wider spatial softmax halved what 500 steps left unknown of a cube's place, and more so of its height.
    """

    sharpness = 10.0
    spread = 3.0

    def make_backbone(self, height: int, width: int) -> tuple[nn.Module, int]:
        layers, before = [], 3
        for channels, kernel, stride in LAYERS:
            layers += [
                nn.Conv2d(before, channels, kernel, stride, padding=(kernel - 1) // 2),
                nn.GroupNorm(channels // GROUP_CHANNELS, channels),
                nn.ReLU(),
            ]
            before = channels
        return nn.Sequential(*layers), before
