"""`embodied data convert`: demonstrations from one program's format to another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from embodied.catalog import nearest
from embodied.console import say
from embodied.conversion import FORMATS, convert
from embodied.datasets.foreign_episodes import Stated
from embodied.errors import UserError
from embodied.run_directory import SUMMARY, RunDirectory


def run(source: Path, config: DictConfig, open_run: Callable[..., RunDirectory]) -> Path:
    """Write the demonstrations at `source` to `config.target` in the format `config.to`.

    Raises:
        UserError: no target or format, an unknown format, or as `convert` raises it.
    """
    if config.to not in FORMATS:
        raise UserError(
            expected="the format to convert to",
            found=f"to={config.to}",
            remedy=nearest(str(config.to), FORMATS),
        )
    if config.target is None:
        raise UserError(expected="where to write", found="target=null", remedy="name a path, for example target=x.zarr")
    target = Path(str(config.target))
    directory = open_run(source, config, target=str(target.resolve()))
    with directory.lock():
        if directory.is_finished and target.exists():
            say(f"{target} is there already, from {source}")
            return directory.path / SUMMARY
        result = convert(str(source), str(target), config.to, _stated(config))
        for words in result["lost"]:
            say(f"not held: {words}")
        say(f"{result['episodes']} episodes, {result['steps']} steps, {result['source_format']} to {target}")
        about = {key: result[key] for key in ("source_format", "target", "episodes", "steps", "lost")}
        return directory.write_summary({"what": "convert", "store": str(source), "format": config.to, **about})


def _stated(config: DictConfig) -> Stated:
    values = OmegaConf.to_container(config.stated, resolve=True)
    assert isinstance(values, dict)
    fields = {str(key): value for key, value in values.items()}
    if fields["representation"] not in (None, "absolute", "delta"):
        raise UserError(
            expected="stated.representation absolute or delta",
            found=str(fields["representation"]),
            remedy="use one of them, or null where the file says it",
        )
    return Stated(**{**fields, "action": tuple(fields["action"])})
