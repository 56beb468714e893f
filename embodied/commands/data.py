"""`embodied data`: look after a store. `verify` and `repair` are here, `stats` and `convert` in files of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from embodied.catalog import nearest
from embodied.commands import data_convert, data_stats
from embodied.console import Progress, say
from embodied.conversion import is_known, located
from embodied.datasets.faults import Fault
from embodied.datasets.open_store import check_store, is_original, looks_like_store
from embodied.datasets.original_check import OriginalCheck
from embodied.datasets.store_check import StoreCheck
from embodied.datasets.store_repair import StoreRepair
from embodied.errors import FaultsFound, UserError
from embodied.run_directory import SUMMARY, RunDirectory, find_run
from embodied.summaries import read_summary
from embodied.types import Json

DEMONSTRATIONS = "demonstrations.zarr"  # store of a collection
# Below both, a check takes a moment and needs no bar.
LONG_BYTES = 64 * 2**20
LONG_PARTS = 2000


def run(config: DictConfig) -> Path:
    """Do what `config.what` names (conf/data.yaml) with the store that `config.store` names.

    Raises:
        FaultsFound: `verify` found faults, or `repair` left some.
        UserError: an unknown verb, no store there, or as the verbs raise it.
    """
    if config.what not in VERBS:
        raise UserError(
            expected="what to do with a store", found=f"'{config.what}'", remedy=nearest(config.what, VERBS)
        )
    if config.resume is not None:
        raise UserError(
            expected="no resume= for a store that is looked after",
            found=f"resume={config.resume}",
            remedy="name the store; it is looked at anew",
        )
    given = located(str(config.store)) if config.what == "convert" else Path(str(config.store))
    is_foreign = config.what == "convert" and is_known(given)
    return VERBS[config.what](given if is_foreign else find_store(given, str(config.run_root)), config)


def find_store(given: Path, run_root: str) -> Path:
    """The store that a user means: itself, damaged or not, or that of a run of collect.

    Raises:
        UserError: there is none.
    """
    if looks_like_store(given):
        return given
    try:
        collected = find_run(given, commands=["collect"], run_root=run_root)
    except UserError as error:
        raise UserError(
            expected="a store's folder, a run of collect, or the original Zarr of Diffusion Policy",
            found=error.found if not given.exists() else f"'{given}', which is none of them",
            remedy=error.remedy,
        ) from error
    summary = read_summary(collected / SUMMARY) if (collected / SUMMARY).is_file() else {}
    configured = OmegaConf.select(OmegaConf.load(collected / "config.yaml"), "store")
    named = Path(str(configured or summary.get("store") or ""))
    for path in (collected / DEMONSTRATIONS, named):
        if looks_like_store(path):
            return path
    raise UserError(
        expected=f"the demonstrations of {collected}",
        found=f"no store at {collected / DEMONSTRATIONS if named == Path() else named}",
        remedy="run the same `embodied collect` again, which makes it anew",
    )


def open_run(path: Path, config: DictConfig, **identity: str) -> RunDirectory:
    """The run directory, whose name depends on where the store lies and not on how its path was written.

    Args:
        identity: what else decides the result, such as the store's content.
    """
    name = path.resolve().parent.name if path.name == DEMONSTRATIONS else path.resolve().stem
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    described = OmegaConf.create({**values, "store": str(path.resolve()), **identity})
    return RunDirectory.open("data", f"{config.what}-{name}", described)


def _verify(path: Path, config: DictConfig) -> Path:
    check = check_store(path)
    faults = _all_faults(check, "verify")
    for fault in faults:
        say(f"{fault.kind}: {fault}")
    say(_verdict(check, faults))
    directory = open_run(path, config)
    with directory.lock():
        summary = directory.write_summary(_result("verify", check, faults))
    if faults:
        raise FaultsFound(summary)
    return summary


def _repair(path: Path, config: DictConfig) -> Path:
    if is_original(path):
        raise UserError(
            expected="a store that `embodied collect` made",
            found=f"the original Zarr of Diffusion Policy, {path}, which is never written",
            remedy="copy it again from where it came",
        )
    done: list[str] = []

    def note(words: str) -> None:
        done.append(words)
        say(words)

    with StoreRepair(path) as repair:
        check = repair.check()
        faults = _all_faults(check, "check")
        for words in repair.remove(check):
            note(words)
        if config.drop_damaged:
            for words in repair.drop(check, faults):
                note(words)
        if done:
            check = repair.check()
            faults = _all_faults(check, "check again")
    for fault in faults:
        say(f"left, {fault.kind}: {fault}")
    say(f"{len(done)} done; {_verdict(check, faults)}" if done else f"nothing to do; {_verdict(check, faults)}")
    directory = open_run(path, config)
    with directory.lock():
        summary = directory.write_summary({**_result("repair", check, faults), "done": done})
    if faults:
        raise FaultsFound(summary)
    return summary


def _all_faults(check: StoreCheck | OriginalCheck, description: str) -> list[Fault]:
    """Those of the files and those of every part, with a bar where that takes long."""
    faults = list(check.faults)
    is_long = check.total > LONG_PARTS or _size(check.path) > LONG_BYTES
    with Progress(description, check.total, check.unit) if is_long else nullcontext() as progress:
        for found in check.parts():
            faults += found
            if progress is not None:
                progress.advance(faults=len(faults))
    return faults


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _verdict(check: StoreCheck | OriginalCheck, faults: Sequence[Fault]) -> str:
    """The last line, in words."""
    if not faults:
        return f"{check.path} is sound: {check.describe()}"
    said = [f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in {check.path}"]
    if isinstance(check, StoreCheck):
        removable = sum(fault.is_removable for fault in faults)
        damaged = len({fault.episode for fault in faults if fault.spoils_episode})
        if removable:
            said.append(f"`embodied data repair` removes {removable} that nothing committed depends on")
        if damaged:
            said.append(f"{damaged} of {len(check.rows)} episodes are damaged (drop_damaged=true drops them)")
        if len(faults) > removable:
            said.append("a copy from where the store came mends them all")
    else:
        said.append("copy it again from where it came")
    return "; ".join(said)


def _result(what: str, check: StoreCheck | OriginalCheck, faults: Sequence[Fault]) -> Json:
    return {
        "what": what,
        "store": str(check.path),
        "format": check.format,
        "episodes": check.episodes,
        "writer": check.writer,
        "sound": not faults,
        "faults": [fault.to_json() for fault in faults],
    }


VERBS: dict[str, Callable[[Path, DictConfig], Path]] = {
    "verify": _verify,
    "repair": _repair,
    "stats": lambda path, config: data_stats.run(path, config, open_run),
    "convert": lambda path, config: data_convert.run(path, config, open_run),
}
