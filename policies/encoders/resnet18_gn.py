"""ResNet-18 (arXiv 1512.03385, table 1) with group norm for batch norm: the backbone of Diffusion Policy.

As there: no pretrained weights, one group for every 16 channels, no average pool and no classifier.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from embodied.policies.encoders.image_encoder import ImageEncoder

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2  # of each width
GROUP_CHANNELS = 16


def _normed(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(after // GROUP_CHANNELS, after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv 1512.03385, fig. 5 left)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _normed(before, after, 3, stride)
        self.second = _normed(after, after, 3, 1)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else _normed(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet18Encoder(ImageEncoder):
    """See `ImageEncoder`; maps are 3 by 3 for images of 96 by 96."""

    def make_backbone(self, height: int, width: int) -> tuple[nn.Module, int]:
        layers: list[nn.Module] = [_normed(3, WIDTHS[0], 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        before = WIDTHS[0]
        for stage, width_ in enumerate(WIDTHS):
            for block in range(BLOCKS):
                layers.append(BasicBlock(before, width_, 2 if stage and not block else 1))
                before = width_
        return nn.Sequential(*layers), before
