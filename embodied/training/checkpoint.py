"""Checkpoints: the deployable policy beside what an exact resume needs. Safetensors and JSON, never pickle.

checkpoints/step_0001500/policy.json, policy.safetensors        averaged weights, ready to run
                         training.json, training.safetensors    raw weights, optimiser, averages; losses, times, device

The last checkpoint of a training that has ended is complete without training.safetensors, four fifths of its size: so a
run can be brought home from the machine that trained it, and is evaluated there by `resume=`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from embodied.errors import UserError
from embodied.policies.policy_file import PolicyDescription, read_description
from embodied.types import Json

STATE = "training.json"
TENSORS = "training.safetensors"
FOLDER = "checkpoints"


def checkpoint_paths(run: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first. A half-written one has another name and is not among them."""
    return sorted(path for path in (run / FOLDER).glob("step_*") if path.suffix != ".partial")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means: a checkpoint folder itself, or the newest one of a run.

    Raises:
        UserError: there is none.
    """
    if (path / "policy.json").is_file():
        return path
    paths = checkpoint_paths(path)
    if not paths:
        raise UserError(
            expected=f"a checkpoint in {path}",
            found="none" if path.exists() else "no such folder",
            remedy="name a training run that has saved one, or a checkpoint folder",
        )
    return paths[-1]


def newest_description(run: Path) -> PolicyDescription | None:
    """What the newest checkpoint of a run says of itself; None before the first.

    Raises:
        UserError: it cannot be read.
    """
    paths = checkpoint_paths(run)
    if not paths:
        return None
    try:
        return read_description(paths[-1])
    except UserError as error:
        raise UserError(
            expected=error.expected, found=error.found, remedy=f"if it is damaged, {_without(paths[-1])}"
        ) from error


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Turn what a damaged checkpoint causes, in its files or in what they are loaded into, into a UserError."""
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError that no deletion mends
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            expected=f"the state of this training in {folder / STATE} and {folder / TENSORS}",
            found=f"something unreadable ({type(error).__name__}: {' '.join(str(error).split())})",
            remedy=_without(folder),
        ) from error


def _without(folder: Path) -> str:
    return f"delete {folder}: the previous checkpoint is then used"


def write_checkpoint(run: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Let `write` fill a folder, then make it appear whole under its name, and drop all but the newest `keep`."""
    path = run / FOLDER / f"step_{step:07d}"
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for file in partial.iterdir():
        _fsync(file)
    _fsync(partial)
    shutil.rmtree(path, ignore_errors=True)
    os.rename(partial, path)
    _fsync(path.parent)
    for old in checkpoint_paths(run)[:-keep]:
        shutil.rmtree(old)
    return path


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Json]:
    """Optimiser state as named tensors and JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"optimizer.{parameter}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], state: Json) -> None:
    """The inverse of `pack_optimizer`."""
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, parameter, name = key.split(".", 2)
            by_parameter.setdefault(int(parameter), {})[name] = tensor
    optimizer.load_state_dict({"state": by_parameter, "param_groups": state["param_groups"]})


def save_training_state(folder: Path, tensors: dict[str, Tensor], state: Json) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")


def load_training_state(folder: Path, steps: int) -> tuple[dict[str, Tensor], Json]:
    """What an exact resume needs; of a training that has ended and was copied without it, the facts alone.

    Args:
        steps: at which the training ends.

    Returns:
        Tensors (none in that case), and facts: `step`, `optimizer`, losses, times, device.

    Raises:
        UserError: the facts are missing, or the tensors of a training that has not ended; or the checkpoint is damaged.
    """
    try:
        with restoring(folder):
            facts = json.loads((folder / STATE).read_text())
            has_ended = facts["step"] >= steps
            return {} if has_ended and not (folder / TENSORS).exists() else load_file(folder / TENSORS), facts
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise UserError(
            expected=f"{STATE} and {TENSORS} in {folder}, to continue its training exactly",
            found=str(error.__cause__),
            remedy=f"start a new run from its weights with init={folder}",
        ) from error
