"""Diffusion Policy's image encoder (arXiv 2303.04137, sec. III-B and appendix), around any backbone.

Each camera has a backbone of its own. Its images are cropped, at random in training and at the centre in evaluation;
the last feature map is pooled by a spatial softmax and projected. Features of all cameras and frames stand beside the
normalised state vectors. Backbones normalise by groups, never by batch (sec. III-B): averaged weights, as diffusion
models are deployed with, do not go with batch statistics.

B batch, T history, N = B T images, K keypoints, F features of an image, h w image, y x crop.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from embodied.errors import UserError
from embodied.policies.encoders.observation_encoder import ObservationEncoder
from embodied.types import CameraSpec, TaskSpec


class ImageEncoder(ObservationEncoder):
    """One camera tower a camera; a file of its own for each backbone says how a tower's backbone is made."""

    sharpness: ClassVar[float] = 1.0  # of the spatial softmax
    spread: ClassVar[float] = 1.0  # likewise

    def __init__(
        self,
        spec: TaskSpec,
        history: int,
        *,
        crop: float,
        keypoints: int,
        features: int,
        state: Sequence[str] | None = None,
        cameras: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            spec, history, state, cameras: as in `ObservationEncoder`.
            crop: share of an image's height and width that is kept, above 0 and at most 1.
            keypoints: K, of the spatial softmax.
            features: F, of an image.

        Raises:
            UserError: no camera, a crop or a size out of range, images too small for the backbone; else as in
                `ObservationEncoder`.
        """
        super().__init__(spec, history, state, cameras)
        if not self.cameras:
            raise UserError(
                expected="at least one camera for an encoder of images",
                found=f"none of task {spec.task}" if cameras is None else "none",
                remedy="name some with task.cameras=[...]"
                + ("" if cameras is None else " and encoder.cameras")
                + ", or set encoder=state",
            )
        if not 0.0 < crop <= 1.0:
            raise UserError(expected="encoder.crop above 0 and at most 1", found=str(crop), remedy="choose 0.9")
        for name, value in (("keypoints", keypoints), ("features", features)):
            if value < 1:
                raise UserError(expected=f"encoder.{name} of at least 1", found=str(value), remedy="raise it")
        self.crop, self.keypoints, self.features = crop, keypoints, features
        self.context_size = history * (self.state_size + features * len(self.cameras))
        self.towers = nn.ModuleList(self._tower(camera) for camera in self.cameras)

    @abstractmethod
    def make_backbone(self, height: int, width: int) -> tuple[nn.Module, int]:
        """A network from images, float [N 3 height width] in [-1, 1], to maps [N M y x]; and M."""

    def crop_size(self, camera: CameraSpec) -> tuple[int, int]:
        """Height and width of a crop, whole pixels: 88 of 96 at 0.917, 86 at 0.9."""
        return max(1, round(self.crop * camera.height)), max(1, round(self.crop * camera.width))

    def forward(
        self, state_BTS: Tensor, images: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        parts = [state_BTS]
        for camera, tower in zip(self.cameras, self.towers, strict=True):
            image_BThw3 = images[camera.name]
            image_Nhw3 = image_BThw3.flatten(0, 1)
            size = self.crop_size(camera)
            # Every frame of every sample and camera is shifted by itself, as in the authors' code, which crops [B T]
            # images: a shift shared by the history would let the policy read its velocity off the pixels' difference,
            # which it copies instead of looking.
            at_random = generator is not None
            cropped = random_crop(image_Nhw3, *size, generator) if at_random else centre_crop(image_Nhw3, *size)
            feature_NF = tower(to_unit_range(cropped))
            parts.append(feature_NF.unflatten(0, image_BThw3.shape[:2]).to(state_BTS.dtype))
        return torch.cat(parts, dim=-1).flatten(1)

    def _tower(self, camera: CameraSpec) -> nn.Module:
        backbone, maps = self.make_backbone(*self.crop_size(camera))
        self._check_maps(backbone, camera)
        return nn.Sequential(
            backbone,
            nn.Conv2d(maps, self.keypoints, 1),
            SpatialSoftmax(self.sharpness, self.spread),
            nn.Linear(2 * self.keypoints, self.features),
        )

    def _check_maps(self, backbone: nn.Module, camera: CameraSpec) -> None:
        """A spatial softmax over a single place is 0 whatever the image shows: the policy would be blind."""
        height, width = self.crop_size(camera)
        try:
            with torch.no_grad():
                rows, columns = backbone(torch.zeros(1, 3, height, width)).shape[-2:]
        except RuntimeError:  # a kernel larger than the image
            rows = columns = 0
        if rows * columns < 2:
            raise UserError(
                expected=f"a feature map of several places for camera '{camera.name}'",
                found=f"{rows} by {columns} from its images of {camera.height} by {camera.width}, cropped to {height} "
                f"by {width}",
                remedy="raise task.camera_size (with timm also encoder.resize), or choose a backbone with less stride, "
                "as conv_small",
            )


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of each map under the softmax of its values (arXiv 1509.06113).

    Maps [N K y x] to [N 2K]: first all K of x, then all of y, from -spread (left, top) to spread (right, bottom).
    """

    def __init__(self, sharpness: float = 1.0, spread: float = 1.0) -> None:
        """
        Args:
            sharpness: 1 / temperature. The softmax of a fresh network's values is nearly flat at 1, and every keypoint
                begins in the middle of the image.
            spread: the coordinate of the image's right and lower edges.
        """
        super().__init__()
        self.sharpness, self.spread = sharpness, spread

    def forward(self, maps_NKyx: Tensor) -> Tensor:
        height, width = maps_NKyx.shape[-2:]
        # In float32 whatever the precision of the rest: sums over a whole map, which autocast leaves alone as it would
        # not a product of matrices.
        share_NKyx = (self.sharpness * maps_NKyx.float()).flatten(2).softmax(-1).unflatten(2, (height, width))
        x = (share_NKyx.sum(2) * _coordinates(width, share_NKyx)).sum(-1)
        y = (share_NKyx.sum(3) * _coordinates(height, share_NKyx)).sum(-1)
        return self.spread * torch.cat([x, y], dim=1)


def _coordinates(count: int, like: Tensor) -> Tensor:
    """-1 .. 1 over `count` pixels; 0 for one alone."""
    if count == 1:
        return like.new_zeros(1)
    return torch.linspace(-1.0, 1.0, count, device=like.device, dtype=like.dtype)


def centre_crop(image_Nhw3: Tensor, height: int, width: int) -> Tensor:
    top, left = (image_Nhw3.shape[1] - height) // 2, (image_Nhw3.shape[2] - width) // 2
    return image_Nhw3[:, top : top + height, left : left + width]


def random_crop(image_Nhw3: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A crop of each image at a place of its own, uniform over all; drawn on the CPU, equal on every device."""
    count, full_height, full_width, _ = image_Nhw3.shape
    top_N = torch.randint(full_height - height + 1, (count,), generator=generator)
    left_N = torch.randint(full_width - width + 1, (count,), generator=generator)
    if image_Nhw3.device.type == "cpu":  # slices copy whole rows, an index picks single pixels
        corners = zip(image_Nhw3, top_N.tolist(), left_N.tolist(), strict=True)
        return torch.stack([image[top : top + height, left : left + width] for image, top, left in corners])
    device = image_Nhw3.device
    rows = (top_N.to(device)[:, None] + torch.arange(height, device=device))[:, :, None]
    columns = (left_N.to(device)[:, None] + torch.arange(width, device=device))[:, None, :]
    return image_Nhw3[torch.arange(count, device=device)[:, None, None], rows, columns]


def to_unit_range(image_Nhw3: Tensor) -> Tensor:
    """uint8 [N h w 3] to float32 [N 3 h w] in [-1, 1], laid out channels last, as the images are."""
    return image_Nhw3.float().mul(2.0 / 255.0).sub(1.0).permute(0, 3, 1, 2)
