"""LeRobot's own DiffusionPolicy, trained by LeRobot's own script on the demonstrations of an `embodied train`.

dataset/          the demonstrations as a LeRobotDataset
lerobot/          what LeRobot's script writes: checkpoints, from the last of which it goes on after an interruption
sessions/*.log    what it said, a file for each time that it was started
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from embodied.commands import train
from embodied.commands.collect import task_spec
from embodied.console import say
from embodied.conversion import convert
from embodied.datasets.foreign_episodes import Stated
from embodied.errors import UserError
from embodied.run_directory import SUMMARY, RunDirectory
from embodied.summaries import describe_machine
from embodied.types import Json, TaskSpec

SAVE_EVERY = 1000  # steps; what an interruption costs at most
ENVIRONMENT_STATE = "observation.environment_state"
KEYS = ("horizon", "action_steps", "history", "down_dims")


def train_lerobot(config: DictConfig, settings: Mapping[str, Any], directory: Path, identity: str) -> Path:
    """Train, or go on where an interruption left it.

    Args:
        config: of `embodied train`: task, expert, collection or store, steps, batch size and seed are taken from it.
        settings: of the policy: `horizon` Tp, `action_steps` Ta, `history` To, `down_dims` of its U-Net.
        directory: of the run.
        identity: what the run is, for its summary.

    Returns:
        the directory.

    Raises:
        UserError: demonstrations that cannot be made or converted, a setting that is unknown or missing, or LeRobot's
            script failed.
    """
    if set(settings) != set(KEYS):
        raise UserError(
            expected=f"the settings {', '.join(KEYS)} of LeRobot's policy",
            found=", ".join(settings) or "none",
            remedy="change the training's overrides in conf/matrix",
        )
    run = RunDirectory(directory, "lerobot", config)
    directory.mkdir(parents=True, exist_ok=True)
    with run.lock():
        (store,) = train.demonstrations(run)
        facts = _dataset(directory / "dataset", store, task_spec(_plain(config.task), _expert(config)))
        sessions, steps = directory / "sessions", int(config.training.steps)
        sessions.mkdir(exist_ok=True)
        if not (checkpoint_folder(directory, steps)).is_dir():
            _run_script(_words(directory, config, settings), directory, sessions)
        checkpoint = checkpoint_folder(directory, steps)
        saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        summary = {
            "command": "lerobot",
            "version": f"lerobot {importlib.metadata.version('lerobot')}",
            "config_hash": hashlib.sha256(identity.encode()).hexdigest(),
            "machine": describe_machine(),
            "policy": f"lerobot {saved['type']}",
            "network": f"unet {'-'.join(map(str, saved['down_dims']))}",
            "parameters": _parameters(checkpoint / "model.safetensors"),
            "steps": steps,
            **facts,
            "timings": {"train_s": _spent_s(sessions)},
        }
        part = directory / f"{SUMMARY}.part"
        part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        part.replace(directory / SUMMARY)
    return directory


def checkpoint_folder(directory: Path, steps: int) -> Path:
    """Of the finished training: what LeRobot saved last."""
    return directory / "lerobot" / "checkpoints" / f"{steps:06d}" / "pretrained_model"


def _dataset(folder: Path, store: Path, spec: TaskSpec) -> Json:
    """The store as LeRobot reads it. Its policy takes no state alone: the smallest state vector of the task stands
    beside the whole state a second time, as that of the environment.

    Returns:
        what the summary says of it.
    """
    vector = smallest_state(spec)
    record = folder.with_suffix(".json")
    if not record.exists():
        from lerobot.datasets import LeRobotDataset
        from lerobot.datasets.dataset_tools import add_features

        plain = folder.with_name(f"{folder.name}_plain")
        for leftover in (plain, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        converted = convert(str(store), str(plain), "lerobot", Stated(spec=spec))
        dataset = LeRobotDataset(f"local/{plain.name}", root=plain, video_backend="pyav")
        state_TS = np.stack(dataset.hf_dataset.with_format("numpy")["observation.state"][:])
        values_TD = state_TS[:, _columns(spec, vector)].astype(np.float32)
        info = {"dtype": "float32", "shape": [values_TD.shape[1]], "names": None}
        add_features(dataset, {ENVIRONMENT_STATE: (values_TD, info)}, folder, f"local/{folder.name}")
        shutil.rmtree(plain)
        record.write_text(json.dumps({name: converted[name] for name in ("episodes", "steps")}))
    facts = json.loads(record.read_text())
    return {"store": facts, "environment_state": vector}


def smallest_state(spec: TaskSpec) -> str:
    """The state vector that LeRobot's policy is given as that of the environment: of one value it would make a scalar.

    Raises:
        UserError: the task has none of two values or more.
    """
    vectors = [state for state in spec.state if state.size > 1]
    if not vectors:
        raise UserError(
            expected=f"a state vector of at least two values in {spec.task}, which LeRobot's policy needs",
            found=", ".join(f"{state.name} ({state.size})" for state in spec.state) or "none",
            remedy="leave LeRobot's rows out with only=",
        )
    return min(vectors, key=lambda state: state.size).name


def _columns(spec: TaskSpec, name: str) -> list[int]:
    """Of one state vector among all of them side by side."""
    names = [state.name for state in spec.state for _ in range(state.size)]
    return [index for index, of_state in enumerate(names) if of_state == name]


def _words(directory: Path, config: DictConfig, settings: Mapping[str, Any]) -> list[str]:
    """The command line of LeRobot's script: from the beginning, or from its last checkpoint."""
    out = directory / "lerobot"
    script = [sys.executable, "-m", "lerobot.scripts.lerobot_train"]
    last = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    if last.is_file():
        return [*script, f"--config_path={last}", "--resume=true"]
    shutil.rmtree(out, ignore_errors=True)  # begun, but nothing saved: the script refuses a folder that exists
    options = {
        "dataset.repo_id": "local/dataset",
        "dataset.root": directory / "dataset",
        "dataset.video_backend": "pyav",
        "output_dir": out,
        "policy.type": "diffusion",
        "policy.device": "cpu",
        "policy.push_to_hub": "false",
        "policy.horizon": settings["horizon"],
        "policy.n_action_steps": settings["action_steps"],
        "policy.n_obs_steps": settings["history"],
        "policy.down_dims": json.dumps(list(settings["down_dims"])),
        # LeRobot's own rule for it, which its default holds for another horizon
        "policy.drop_n_last_frames": settings["horizon"] - settings["action_steps"] - settings["history"] + 1,
        "steps": config.training.steps,
        "batch_size": config.training.batch_size,
        "seed": config.seed,
        "num_workers": 0,
        "save_freq": SAVE_EVERY,
        "log_freq": 200,
        "wandb.enable": "false",
    }
    return [*script, *(f"--{key}={value}" for key, value in options.items())]


def _run_script(words: list[str], directory: Path, sessions: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "home")}
    log = sessions / f"{time.time():.0f}.log"
    say(f"LeRobot's script trains; what it says is in {log}")
    with log.open("wb") as file:
        done = subprocess.run(words, env=environment, cwd=directory, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise UserError(
            expected="LeRobot's training script to run to its end",
            found=f"status {done.returncode}; {' '.join(log.read_text(errors='replace').split()[-60:])}",
            remedy=f"see {log}, and give the same command again: it goes on from the last checkpoint",
        )


def _spent_s(sessions: Path) -> float:
    """From the start of each session to the last that it said."""
    return sum(max(0.0, log.stat().st_mtime - float(log.stem)) for log in sessions.glob("*.log"))


def _parameters(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, framework="np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


def _expert(config: DictConfig) -> Json | None:
    return _plain(config.expert) if config.data.store is None else None


def _plain(config: DictConfig) -> Json:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
