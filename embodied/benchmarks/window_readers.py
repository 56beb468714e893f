"""Readers of the same training windows: two observations, sixteen actions, with or without camera images.

Each is made from files and answers `gather` with the windows at some control steps, one window a step: history before
an episode's first step repeats it, actions after its last step repeat that one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import zarr
from zarr.storage import LocalStore

from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.image_rows import ImageRows
from embodied.datasets.lerobot_dataset import STATE
from embodied.datasets.window_sampler import WindowSampler
from embodied.types import Window

HISTORY, HORIZON = 2, 16


class WindowReader(Protocol):
    def __len__(self) -> int:
        """Number of windows."""
        ...

    def gather(self, indices: np.ndarray) -> Window: ...


class NumpyWindows:
    """The limit: all in memory, and the rows of every window listed beforehand, so that a batch is four `take`s and
    one more of each camera."""

    def __init__(self, path: Path) -> None:
        store = EpisodeStore.open(path)
        self._state, self._action = _vectors(store)
        self._state_rows, self._action_rows = _rows(store.episode_ends)
        self._images = {camera.name: store.read(f"image/{camera.name}") for camera in store.spec.cameras}

    def __len__(self) -> int:
        return len(self._state_rows)

    def gather(self, indices: np.ndarray) -> Window:
        state_rows = self._state_rows.take(indices, axis=0)
        action_rows = self._action_rows.take(indices, axis=0)
        return Window(
            state=self._state.take(state_rows, axis=0),
            action=self._action.take(action_rows, axis=0),
            valid=np.ones(action_rows.shape, bool),
            images={name: images[state_rows] for name, images in self._images.items()},
        )


class SampledWindows:
    """Ours, as training reads them."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        """
        Args:
            cache: folder of the decoded images, to be mapped; None to read them from the shards.
        """
        store = EpisodeStore.open(path)
        images = ImageRows(store, store.spec.cameras, cache=cache) if store.spec.cameras else None
        self._windows = WindowSampler.from_store(store, history=HISTORY, horizon=HORIZON, images=images)

    def __len__(self) -> int:
        return len(self._windows)

    def gather(self, indices: np.ndarray) -> Window:
        return self._windows.gather(indices)


class ZarrWindows:
    """State and actions in memory; images by Zarr's own selection of rows, with Zarr's default pipeline."""

    def __init__(self, path: Path) -> None:
        store = EpisodeStore.open(path)
        self._state, self._action = _vectors(store)
        self._state_rows, self._action_rows = _rows(store.episode_ends)
        files = LocalStore(path, read_only=True)
        self._images = {
            camera.name: zarr.open_array(files, path=f"data/image/{camera.name}", mode="r")
            for camera in store.spec.cameras
        }

    def __len__(self) -> int:
        return len(self._state_rows)

    def gather(self, indices: np.ndarray) -> Window:
        state_rows, action_rows = self._state_rows[indices], self._action_rows[indices]
        wanted, places = np.unique(state_rows, return_inverse=True)
        places = places.reshape(state_rows.shape)
        return Window(
            state=self._state[state_rows],
            action=self._action[action_rows],
            valid=np.ones(action_rows.shape, bool),
            images={name: np.asarray(array.oindex[wanted])[places] for name, array in self._images.items()},
        )


class LeRobotWindows:
    """LeRobotDataset as LeRobot's own training reads it: through a DataLoader, which collates, in this process."""

    def __init__(self, path: Path, cache: Path) -> None:
        """
        Args:
            cache: where Hugging Face's `datasets` puts its tables.
        """
        from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata

        import_module("datasets").config.HF_DATASETS_CACHE = cache  # not `import`: a folder of ours has that name
        name = f"local/{path.name}"
        metadata = LeRobotDatasetMetadata(name, root=path)
        seen = [step / metadata.fps for step in range(1 - HISTORY, 1)]
        self._cameras = list(metadata.camera_keys)
        self._dataset = LeRobotDataset(
            name,
            root=path,
            delta_timestamps={
                "action": [step / metadata.fps for step in range(HORIZON)],
                **dict.fromkeys((STATE, *self._cameras), seen),
            },
            video_backend="pyav",
            return_uint8=True,
        )

    def __len__(self) -> int:
        return len(self._dataset)

    def gather(self, indices: np.ndarray) -> Window:
        from torch.utils.data import DataLoader

        (batch,) = DataLoader(self._dataset, batch_sampler=[indices.tolist()])
        images = {key.rpartition(".")[2]: batch[key].permute(0, 1, 3, 4, 2).numpy() for key in self._cameras}
        return Window(batch[STATE].numpy(), batch["action"].numpy(), ~batch["action_is_pad"].numpy(), images)


def _vectors(store: EpisodeStore) -> tuple[np.ndarray, np.ndarray]:
    """State vectors side by side, [T S], and actions, [T A]."""
    state = store.spec.flatten_state({spec.name: store.read(f"state/{spec.name}") for spec in store.spec.state})
    return state, store.read("action")


def _rows(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of every window: of its observations [T 2], of its actions [T 16]."""
    lengths = np.diff(ends, prepend=0)
    first, last = np.repeat(ends - lengths, lengths)[:, None], np.repeat(ends - 1, lengths)[:, None]
    row = np.arange(ends[-1])[:, None]
    return np.maximum(row + np.arange(1 - HISTORY, 1), first), np.minimum(row + np.arange(HORIZON), last)
