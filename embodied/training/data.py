"""What a training learns from: one store or several, their windows, statistics and content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from embodied.datasets.episode_store import check_specs, require_complete
from embodied.datasets.image_rows import ImageRows
from embodied.datasets.open_store import open_store
from embodied.datasets.window_mixture import WindowMixture, mixed_statistics, whole_shares
from embodied.datasets.window_sampler import WindowSampler, split_episodes
from embodied.datasets.window_statistics import window_statistics
from embodied.errors import UserError
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.protocols import DemonstrationStore, WindowSource
from embodied.types import Json, Statistics, TaskSpec, Window


@dataclass(frozen=True)
class DataSettings:
    """How the stores are read (conf/train.yaml, `data`); of these only the weights change what is learned."""

    weights: tuple[float, ...] | None = None  # shares of the draws; None: every window once an epoch
    image_cache: Path | None = None  # folder for decoded images; None: from the shards
    image_cache_gb: float | None = None  # that a store's may take; None: half of the free disk
    read_ahead: int = 4  # batches with images that are decoded before they are asked for


class TrainingData:
    """The opened stores of a training."""

    def __init__(
        self, paths: Sequence[Path], spec: TaskSpec, settings: DataSettings, *, allow_partial: bool = False
    ) -> None:
        """
        Raises:
            UserError: no store, one that is not there, not complete or not of this task, or weights that do not fit.
        """
        self.paths, self.settings = tuple(paths), settings
        if not paths:
            raise UserError(expected="at least one store", found="none", remedy="name one with data.store=")
        if settings.weights is not None:
            whole_shares(settings.weights, len(paths))
        self.stores = [open_store(path, spec) for path in paths]
        for store in self.stores:
            check_specs(store, spec)
            require_complete(store, allow_partial)

    @cached_property
    def _hashes(self) -> list[str]:
        """That of each store; some read all of their data for it."""
        return [store.content_hash() for store in self.stores]

    @property
    def content_hash(self) -> str:
        """That of the store, or one over those of several in their order."""
        if len(self._hashes) == 1:
            return self._hashes[0]
        return hashlib.sha256(json.dumps(self._hashes).encode()).hexdigest()

    def describe(self) -> Json:
        """Sizes and content, for the run's summary; of several stores each one's, too."""
        whole = {
            "episodes": sum(len(store) for store in self.stores),
            "steps": sum(store.total_steps for store in self.stores),
            "content_hash": self.content_hash,
        }
        return whole if len(self.stores) == 1 else {**whole, "parts": self.parts()}

    def parts(self) -> list[Json]:
        """Of each store what it is and which weight it has."""
        weights = self.settings.weights or (None,) * len(self.stores)
        return [
            {
                "path": str(path),
                "episodes": len(store),
                "steps": store.total_steps,
                "content_hash": content,
                "weight": weight,
            }
            for path, store, content, weight in zip(self.paths, self.stores, self._hashes, weights, strict=True)
        ]

    def statistics(self, policy: DenoisingPolicy) -> dict[str, Statistics]:
        """Of the state vectors that the policy sees and of the actions, over what the mixture draws."""
        keys = [*(f"state/{state.name}" for state in policy.inputs.state), "action"]
        parts = [store.statistics(keys) for store in self.stores]
        return {key: mixed_statistics([part[key] for part in parts], self.settings.weights) for key in keys}

    def window_statistics(self, policy: DenoisingPolicy, rows: Callable[[Window], np.ndarray]) -> Statistics:
        """Of what `rows` makes of all windows, likewise."""
        parts = [window_statistics(_windows(store, policy), rows) for store in self.stores]
        return mixed_statistics(parts, self.settings.weights)

    def split(self, policy: DenoisingPolicy, share: float, seed: int) -> tuple[WindowSource, WindowSource | None]:
        """Windows of the training episodes, mixed by the weights, and of the held-out ones, all of them; each store
        is divided by itself."""
        train, validation = [], []
        for store in self.stores:
            training_episodes, validation_episodes = split_episodes(len(store), share, seed)
            images = self._images(store, policy)  # shared by both
            train.append(_windows(store, policy, training_episodes, images))
            if len(validation_episodes):
                validation.append(_windows(store, policy, validation_episodes, images))
        return _together(train, self.settings.weights), _together(validation, None) if validation else None

    def _images(self, store: DemonstrationStore, policy: DenoisingPolicy) -> ImageRows | None:
        if not policy.inputs.cameras:
            return None
        most = self.settings.image_cache_gb
        return ImageRows(
            store,
            policy.inputs.cameras,
            cache=self.settings.image_cache,
            most_bytes=None if most is None else int(most * 1e9),
        )


def _together(samplers: list[WindowSampler], weights: Sequence[float] | None) -> WindowSource:
    return samplers[0] if len(samplers) == 1 else WindowMixture(samplers, weights)


def _windows(
    store: DemonstrationStore,
    policy: DenoisingPolicy,
    episodes: np.ndarray | None = None,
    images: ImageRows | None = None,
) -> WindowSampler:
    return WindowSampler.from_store(
        store,
        history=policy.history,
        horizon=policy.horizon,
        past=policy.past,
        episodes=episodes,
        inputs=policy.inputs,
        images=images,
        executed=policy.sees_executed,
    )
