"""Whole episodes on their way into a store, one file each: many processes put them, the store's one writer takes them.

    X/incoming/<variant>-<seed>.safetensors    arrays as the store keeps them; metadata: what its manifest would say

A file appears whole or not at all, and only its name says which episode it is. So a process may be killed at any time,
and whoever goes on finds what was finished. A file whose bytes do not match its checksum counts as never put.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from embodied.datasets.durable_files import disk_full_as_user_error, replace_file
from embodied.datasets.episode_layout import array_layouts, check_episode, checksum, episode_arrays, episode_from_arrays
from embodied.datasets.manifest import encode_json
from embodied.types import Episode, TaskSpec

log = logging.getLogger(__name__)

FOLDER = "incoming"


class EpisodeInbox:
    """The folder of episodes that are finished and not committed yet. Safe for any number of processes."""

    def __init__(self, store: Path, spec: TaskSpec) -> None:
        """
        Args:
            store: the folder of the store that the episodes are for; it exists.
            spec: of the store's task.
        """
        self.folder = store / FOLDER
        self._spec = spec

    def put(self, episode: Episode) -> None:
        """Have the whole episode on the disk on return.

        Raises:
            UserError: the episode does not fit the spec or is not finite, or the disk is full.
        """
        check_episode(episode, self._spec, None)
        arrays, layouts = episode_arrays(episode), array_layouts(self._spec, episode.physics.shape[1])
        about = {
            "task": episode.task,
            "instruction": episode.instruction,
            "provenance": episode.provenance,
            "checksum": checksum(arrays, layouts),
        }
        text = encode_json(about, f"the provenance of seed {episode.seed}").decode()
        content = save({key: np.ascontiguousarray(values) for key, values in arrays.items()}, {"episode": text})
        with disk_full_as_user_error(self.folder.parent):
            replace_file(self._path(episode.seed, episode.variant), content, root=self.folder.parent)

    def take(self, seed: int, variant: str = "base") -> Episode | None:
        """The episode of this seed; None if it was never put, or what is there is damaged (logged, and deleted)."""
        path = self._path(seed, variant)
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["episode"])
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            if checksum(arrays, array_layouts(self._spec, arrays["physics"].shape[1])) != about.pop("checksum"):
                raise ValueError("its bytes do not match its checksum")
            return episode_from_arrays(arrays, seed=seed, variant=variant, **about)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s is damaged (%s): it counts as never made", path, error)
            path.unlink(missing_ok=True)
            return None

    def discard(self, seed: int, variant: str = "base") -> None:
        """Delete the episode of this seed, if it is there: it was committed or dropped."""
        self._path(seed, variant).unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the folder with whatever is left in it: the store wants no more episodes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, seed: int, variant: str) -> Path:
        return self.folder / f"{variant}-{seed:08d}.safetensors"
