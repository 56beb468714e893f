"""The trainings of `embodied bench policy`: each found again, continued, or begun."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from embodied.commands.collect import with_teacher_content
from embodied.commands.matrix_cells import filled, given_paths, shared_words, slug
from embodied.commands.policy_matrix import OF_TRAINED_POLICIES, Column, PolicyCell, PolicyMatrix, Training
from embodied.configuration import check, quote
from embodied.run_directory import CONFIG, SUMMARY
from embodied.types import Json

MODULES = {
    "train": "embodied.commands.train",
    "distill": "embodied.commands.distill",
    "lerobot": "embodied.commands.lerobot_training",
}


@dataclass(frozen=True)
class Runs:
    """Where the runs of a matrix are, and what of the user's they need."""

    matrix: PolicyMatrix
    run_root: Path
    shared: Sequence[str]  # overrides of every command
    paths: Mapping[str, str]

    @staticmethod
    def of(matrix: PolicyMatrix, config: DictConfig) -> Runs:
        return Runs(matrix, Path(config.run_root).absolute(), shared_words(config), given_paths(config))

    def directory(self, column: Column, training: Training) -> Path:
        """Of a training, by what it is declared as: later versions may add keys to its configuration."""
        name = f"{slug(column.label)}-{training.name}-{self.matrix.training_declared(column, training)}"
        return self.run_root / training.command / name

    def missing(self, column: Column, training: Training) -> list[str]:
        """Why it cannot be trained here: paths that are not given, or a command that this version does not have."""
        why = [f"needs paths.{name}=..." for name in sorted(column.places - self.paths.keys())]
        if not is_available(training.command):
            why.append(f"embodied {training.command} is not available in this version")
        return why

    def trained(self, column: Column, training: Training) -> Path:
        """The directory of the finished training: trained now, from where it stands, or its teacher first, if need be.

        Raises:
            UserError: as the training's command raises it.
        """
        directory = self.directory(column, training)
        if (directory / SUMMARY).is_file():
            return directory
        words = filled(self.matrix.training_words(column, training), self.paths)
        if training.teacher is not None:
            words.append(f"teacher={quote(str(self.trained(column, self.matrix.trainings[training.teacher])))}")
        if training.command in OF_TRAINED_POLICIES:
            words += [f"eval.{word}" for word in self._own_evaluation(column, training)]
        if training.command == "lerobot":
            return self._lerobot(column, training, directory)
        begun = (directory / CONFIG).is_file()
        words.append(f"resume={quote(str(directory))}" if begun else f"name={directory.name}")
        command = importlib.import_module(MODULES[training.command])
        command.run(check(training.command, [*words, *self.shared]))
        return directory

    def source_words(self, cell: PolicyCell, directory: Path) -> list[str]:
        """What of a finished training `embodied eval` is to evaluate."""
        if cell.training.command != "lerobot":
            return [f"run={quote(str(directory))}"]
        from embodied.commands.lerobot_training import checkpoint_folder

        facts = json.loads((directory / SUMMARY).read_text())
        return [
            *cell.column.task_words,
            f"lerobot.path={quote(str(checkpoint_folder(directory, facts['steps'])))}",
            f"lerobot.environment_state=[{facts['environment_state']}]",
        ]

    def _lerobot(self, column: Column, training: Training, directory: Path) -> Path:
        """LeRobot's training on what an `embodied train` of the column would learn from."""
        from embodied.commands.lerobot_training import train_lerobot

        config = check("train", [*filled(self.matrix.column_words(column), self.paths), *self.shared])
        identity = json.dumps([*self.matrix.column_words(column), *training.overrides])
        return train_lerobot(with_teacher_content(config), training.settings, directory, identity)

    def _own_evaluation(self, column: Column, training: Training) -> list[str]:
        """What `embodied train` evaluates at its end: the same words as a cell's, which so is measured already."""
        cells = [cell for cell in self.matrix.cells if cell.column == column and cell.training == training]
        settings = {word.partition("=")[0] for cell in cells for word in cell.row.overrides}
        return [word for word in cells[0].evaluation if word.partition("=")[0] not in settings]


def is_available(command: str) -> bool:
    """Whether this version has the command that a training stands for."""
    return command in MODULES and find_spec(MODULES[command]) is not None


def training_facts(directory: Path) -> Json:
    """What is kept of a finished training."""
    summary = json.loads((directory / SUMMARY).read_text())
    keys = ("network", "policy", "encoder", "parameters", "store", "steps", "device")
    return {
        "command": summary["command"],
        "run": directory.name,
        "config_hash": summary["config_hash"],
        **{key: summary[key] for key in keys if key in summary},
        "version": summary["version"],
        "machine": summary["machine"],
        "timings": {"train_min": summary["timings"]["train_s"] / 60, "beside": "whatever else ran"},
    }
