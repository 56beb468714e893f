"""Any convolutional or token backbone of timm, by name, with weights from a local file or none. Never a download."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.policies.encoders.image_encoder import ImageEncoder
from embodied.types import TaskSpec

GROUP_CHANNELS = 16


class TimmEncoder(ImageEncoder):
    """See `ImageEncoder`. Batch norm is replaced by group norm, which keeps its learned scale and shift."""

    start_settings = ("weights",)

    def __init__(
        self,
        spec: TaskSpec,
        history: int,
        *,
        model: str,
        resize: int | None,
        crop: float,
        keypoints: int,
        features: int,
        weights: str | None = None,
        sha256: str | None = None,
        state: Sequence[str] | None = None,
        cameras: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            model: timm's name.
            resize: pixels, both sides, to which a crop is scaled; None: as it is.
            weights: a safetensors file of the model's weights; its classifier is left out.
            sha256: of that file; for the run's name, written by the program.
            the rest: as in `ImageEncoder`.

        Raises:
            UserError: timm is not installed, an unknown model, one that cannot see images of this size, or weights
                that cannot be read or do not fit; else as in `ImageEncoder`.
        """
        if resize is not None and (not isinstance(resize, int) or resize < 1):
            raise UserError(
                expected="encoder.resize a whole number of at least 1", found=str(resize), remedy="choose 224, or null"
            )
        self._model, self._resize, self._weights = model, resize, weights
        super().__init__(spec, history, crop=crop, keypoints=keypoints, features=features, state=state, cameras=cameras)

    def make_backbone(self, height: int, width: int) -> tuple[nn.Module, int]:
        timm = _import_timm()
        size = (height, width) if self._resize is None else (self._resize, self._resize)
        if not isinstance(self._model, str) or not timm.is_model(self._model):
            raise UserError(
                expected="the name of a timm model in encoder.model",
                found=f"'{self._model}'",
                remedy=_nearest_models(str(self._model), timm.list_models()),
            )
        model = _make_model(timm, self._model, size)
        if self._weights is not None:
            _load_weights(model, Path(self._weights), self._model)
        backbone = _TimmBackbone(model, size)
        try:
            with torch.no_grad():
                maps = backbone(torch.zeros(1, 3, height, width))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _wrong_size(self._model, size, error) from error
        return backbone, maps.shape[1]


class _TimmBackbone(nn.Module):
    """From images in [-1, 1] to the last feature map; tokens on a grid become one."""

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))  # class and register tokens
        # What the model's weights were trained with, of images in [0, 1].
        for name in ("mean", "std"):
            values = torch.tensor(model.default_cfg.get(name, (0.5, 0.5, 0.5))).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.model = with_group_norm(model)

    def forward(self, image_N3hw: Tensor) -> Tensor:
        if image_N3hw.shape[-2:] != self.size:
            image_N3hw = F.interpolate(image_N3hw, self.size, mode="bilinear", antialias=True, align_corners=False)
        found = self.model.forward_features(((image_N3hw + 1) / 2 - self.mean) / self.std)
        if found.ndim == 3:  # [N tokens M]
            found = found[:, self.prefix :].transpose(1, 2)
            return found.unflatten(2, self._grid(found.shape[2]))
        is_channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return found.permute(0, 3, 1, 2) if is_channels_last else found

    def _grid(self, tokens: int) -> tuple[int, int]:
        """Of patches, as high and wide as the image's shape has it."""
        rows = round((tokens * self.size[0] / self.size[1]) ** 0.5)
        if rows < 1 or tokens % rows:
            raise ValueError(f"{tokens} tokens are no grid over an image of {self.size[0]} by {self.size[1]}")
        return rows, tokens // rows


def with_group_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm by a group norm with its scale and shift, and what timm fuses into it."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, _group_norm(child))
        else:
            with_group_norm(child)
    return module


def _group_norm(norm: Any) -> nn.Module:
    channels = norm.num_features
    groups = max(1, channels // GROUP_CHANNELS)
    while channels % groups:
        groups -= 1
    replaced = nn.GroupNorm(groups, channels, eps=norm.eps)
    if norm.affine:
        replaced.load_state_dict({"weight": norm.weight.detach(), "bias": norm.bias.detach()})
    fused = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    return nn.Sequential(replaced, *fused) if fused else replaced


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            expected="the package timm for encoder=timm",
            found=f"{type(error).__name__}: {error}",
            remedy="pip install 'embodied-policies[tasks]', or set encoder=resnet18_gn",
        ) from error


def _nearest_models(name: str, known: list[str]) -> str:
    """The nearest few: timm knows more than a thousand."""
    import difflib

    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f"the nearest: {', '.join(close)}" if close else nearest(name, known[:10]) + ", ..."


def _make_model(timm: Any, name: str, size: tuple[int, int]) -> Any:
    try:
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        except TypeError:  # convolutional models take any size and no such argument
            return timm.create_model(name, pretrained=False, num_classes=0)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _wrong_size(name, size, error) from error


def _wrong_size(name: str, size: tuple[int, int], error: Exception) -> UserError:
    return UserError(
        expected=f"a timm model with feature maps of images of {size[0]} by {size[1]} pixels",
        found=f"encoder.model={name}: {' '.join(str(error).split()) or type(error).__name__}",
        remedy="set encoder.resize to a size that it takes, for example 224, or choose another model",
    )


def _load_weights(model: Any, path: Path, name: str) -> None:
    """
    Raises:
        UserError: no such file, not safetensors, or weights of another model.
    """
    remedy = f"name a safetensors file of timm's {name} with encoder.weights, or null for fresh weights"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            expected=f"safetensors weights at {path}", found=" ".join(str(error).split()), remedy=remedy
        ) from error
    heads = model.default_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    kept = {key: value for key, value in weights.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    try:
        model.load_state_dict(kept, strict=True)
    except RuntimeError as error:
        raise UserError(
            expected=f"weights of timm's {name} in {path}", found=" ".join(str(error).split())[:300], remedy=remedy
        ) from error
