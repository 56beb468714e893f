"""`embodied export`: a checkpoint's programs as ONNX or `torch.export`, each compared with the policy itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from embodied.catalog import nearest
from embodied.commands.evaluated_policy import resolved_checkpoint
from embodied.console import Progress, table
from embodied.errors import UserError, first_line
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.engines.engine import PARITY, Program, checked_parity
from embodied.policies.engines.onnx_export import OPSET, export_onnx
from embodied.policies.engines.onnx_runtime import OnnxProgram, check_installed
from embodied.policies.engines.torch_export import export_torch
from embodied.policies.exported_programs import ExportedProgram, exported_programs
from embodied.policies.policy_file import DESCRIPTION, load_configured
from embodied.run_directory import RunDirectory
from embodied.types import Json

FORMATS = ("onnx", "torch_export")
PROGRAMS = "programs.json"
SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
BATCHES = (1, 3)  # that parity is checked with


def run(config: DictConfig) -> Path:
    """Write the programs, compare them with the policy, and return the path of `summary.json`.

    Raises:
        UserError: no such checkpoint or format, settings that the policy cannot run with, something that cannot be
            exported, or parity that fails (nothing is left of that export).
    """
    if config.format not in FORMATS:
        raise UserError(
            expected="a format to export to", found=f"'{config.format}'", remedy=nearest(str(config.format), FORMATS)
        )
    if config.format == "onnx":
        check_installed("format=onnx")
    checkpoint = resolved_checkpoint(config.run, config.run_root)
    settings = {str(name): value for name, value in config.policy.items() if value is not None}
    policy, description = load_configured(checkpoint, settings)
    stem = f"{description.spec.task}-{description.network['name']}-{policy.label}-{config.format}"
    directory = RunDirectory.open("export", stem, config)
    with directory.lock():
        programs = exported_programs(policy)
        rows = []
        with Progress(f"export {config.format}", len(programs), "programs") as progress:
            try:
                for program in programs:
                    rows.append(_exported(program, config.format, directory.path))
                    progress.advance(1)
            except UserError:
                for row in rows:  # one program alone is of no use
                    (directory.path / row["file"]).unlink(missing_ok=True)
                raise
        (directory.path / DESCRIPTION).write_text(json.dumps(description.to_json(), indent=2) + "\n")
        (directory.path / PROGRAMS).write_text(json.dumps(_about(policy, programs, rows), indent=2) + "\n")
        columns = ("program", "inputs", "outputs", "largest difference", "MB")
        table(columns, [_cells(row) for row in rows])
        return directory.write_summary(
            {"checkpoint": str(checkpoint), "format": config.format, "setting": policy.label, "programs": rows}
        )


def _exported(program: ExportedProgram, format: str, folder: Path) -> Json:
    """One program on disk, and what its parity check found."""
    path = folder / f"{program.name}{SUFFIX[format]}"
    inputs = tuple(program.inputs.values())
    try:
        if format == "onnx":
            with path.open("wb") as file:
                export_onnx(program.module, inputs, file, list(program.inputs), program.outputs)
        else:
            export_torch(program.module, inputs, path)
        loaded = _loaded(path, format)
        errors = [checked_parity(format, program.module, loaded, _random(program, batch)) for batch in BATCHES]
    except UserError:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:  # the exporters' own are many
        path.unlink(missing_ok=True)
        raise UserError(
            expected=f"a program that {format} can hold",
            found=f"{program.name}: {first_line(error)}",
            remedy="export to the other format, or use another network",
        ) from error
    return {
        "name": program.name,
        "file": path.name,
        "inputs": {name: _shape(x) for name, x in program.inputs.items()},
        "outputs": list(program.outputs),
        "largest_difference": max(errors),
        "bytes": path.stat().st_size,
    }


def _loaded(path: Path, format: str) -> Program:
    if format == "onnx":
        return OnnxProgram(str(path), threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a buffer that cannot be written, which nobody does
        return torch.export.load(path).module()


def _random(program: ExportedProgram, batch: int) -> Sequence[Tensor]:
    """Inputs that move everything: noise where there are numbers, any bytes where there are pixels."""
    generator = torch.Generator().manual_seed(batch)

    def drawn(x: Tensor) -> Tensor:
        shape = (batch, *x.shape[1:])
        if x.dtype == torch.uint8:
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return torch.randn(shape, generator=generator)

    return [drawn(x) for x in program.inputs.values()]


def _shape(x: Tensor) -> Json:
    return {"shape": ["B", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch.")}


def _about(policy: DenoisingPolicy, programs: list[ExportedProgram], rows: list[Json]) -> Json:
    """What a caller must know beside the shapes."""
    return {
        "setting": policy.label,
        "opset": OPSET,
        "parity": PARITY,
        "history": policy.history,
        "horizon": policy.horizon,
        "past": policy.past,
        "action_steps": policy.action_steps,
        "inference_delay": policy.inference_delay,
        "state": [{"name": vector.name, "size": vector.size} for vector in policy.inputs.state],
        "actions": {"representation": policy.actions.representation, "rotation": policy.actions.rotation},
        "programs": rows,
        "constants": {
            program.name: {name: x.tolist() for name, x in program.constants.items()}
            for program in programs
            if program.constants
        },
    }


def _cells(row: Json) -> list[str]:
    inputs = ", ".join(f"{name} {x['dtype']}[{' '.join(map(str, x['shape']))}]" for name, x in row["inputs"].items())
    outputs = ", ".join(row["outputs"])
    return [row["name"], inputs, outputs, f"{row['largest_difference']:.1e}", f"{row['bytes'] / 2**20:.1f}"]
