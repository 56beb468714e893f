"""From the words of a command line to a checked configuration. Every mistake becomes a `UserError` of one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

import embodied
from embodied.catalog import nearest
from embodied.errors import UserError
from embodied.types import Json
from embodied.value_types import check_kinds

CONFIG_MODULE = "embodied.conf"

# An override begins with a dotted key or a group (`hydra/launcher`), perhaps with a package (`collection@collect`).
_OVERRIDE = re.compile(r"(?:~|\+{0,2})(?P<key>[A-Za-z_$][\w$.-]*(?:/[\w$.-]+)*)(?:@[\w.:-]*)?=")
_DELETION = re.compile(r"~[A-Za-z_$][^/]*")


def is_override(word: str) -> bool:
    """Whether a word is for Hydra (`key=value`, `+key=value`, `~key`); otherwise it is a positional, such as a path."""
    match = _OVERRIDE.match(word)
    if match is None:
        return _DELETION.fullmatch(word) is not None
    first, slash, _ = match["key"].partition("/")
    # `outputs/a=1` is a path: a group's name begins with one of our groups. In a checkout `conf/` stands elsewhere.
    return not slash or first == "hydra" or any((Path(place) / "conf" / first).is_dir() for place in embodied.__path__)


def quote(text: str) -> str:
    """`text` as a string of Hydra's override grammar that means exactly `text`."""
    # Backslashes count only before a quote or at the end; `${` would begin an interpolation.
    literal = text.replace("${", "\\${")
    literal = re.sub(r"(\\+)(?='|\Z)", r"\1\1", literal).replace("'", "\\'")
    return f"'{literal}'"


def check(
    command: str, overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None
) -> DictConfig:
    """Compose the configuration of `command` once, before anything happens.

    Args:
        overrides: words of Hydra's grammar.
        multirun: overrides may be sweeps; every value of each is tried.
        config_dir: a folder with further configuration groups.

    Returns:
        The configuration (of the first job), without Hydra's own section.

    Raises:
        UserError: an unknown key or option, a syntax error, or an interpolation that leads nowhere.
    """
    extra = [f"hydra.searchpath=[{quote('file://' + str(Path(config_dir).resolve()))}]"] if config_dir else []
    with _config_loader() as loader:
        jobs = list(_jobs(overrides, loader)) if multirun else [list(overrides)]
        configs = [_compose(command, [*extra, *job], loader) for job in jobs]
    return configs[0]


def missing_keys(config: DictConfig) -> list[str]:
    """Dotted keys whose value is mandatory (`???`) and not given."""
    tree: Any = OmegaConf.to_container(config, resolve=False, throw_on_missing=False)
    # Not OmegaConf's own missing_keys: it stumbles over an interpolation that leads to a missing value.
    return sorted(path for path, value in _leaves(tree, "") if value == "???")


def group_options(group: str) -> list[str]:
    """Every option of a configuration group, those in its subgroups as `subgroup/option`; none if there is no group."""
    with _config_loader() as loader:
        return sorted(_options(group, loader))


@contextmanager
def _config_loader() -> Iterator[ConfigLoader]:
    """Hydra's, also within a command that Hydra runs, whose own is put back."""
    hydra = GlobalHydra.instance()
    outer, hydra.hydra = hydra.hydra, None
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3", job_name="embodied"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = outer


def _jobs(overrides: Sequence[str], loader: ConfigLoader) -> Iterator[list[str]]:
    """The overrides of jobs that together try each value of each sweep once."""
    choices = []
    for word, override in zip(overrides, _parse(overrides, loader), strict=True):
        if not override.is_sweep_override():
            choices.append([word])
        elif override.is_discrete_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        # The rest, a continuous range, is for a sweeper that knows what to do with it.
    first = [values[0] for values in choices]
    yield first
    for place, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:place], value, *first[place + 1 :]]


def _parse(overrides: Sequence[str], loader: ConfigLoader) -> list[Any]:
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise _syntax_error(error) from error


def _compose(command: str, overrides: list[str], loader: ConfigLoader) -> DictConfig:
    try:
        config = compose(command, overrides=overrides)
        # Missing values are reported later, by name; here only interpolations are of interest.
        with suppress(InterpolationToMissingValueError):
            OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
        _check_kinds(command, overrides, config, loader)
        return config
    except OverrideParseException as error:
        raise _syntax_error(error) from error
    except MissingConfigException as error:
        raise _unknown_option(error, overrides, loader) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, command, overrides) from error


def _check_kinds(command: str, overrides: list[str], config: DictConfig, loader: ConfigLoader) -> None:
    """Values must be of their defaults' kind, which the chosen options of groups decide."""
    parsed = list(zip(overrides, _parse(overrides, loader), strict=True))
    choices = [word for word, override in parsed if _is_choice(override)]
    keys = [
        override.key_or_group
        for _, override in parsed
        if not _is_choice(override) and not override.is_delete() and not override.is_add()
    ]
    if keys:
        of_others = any(word.startswith("hydra") for word in choices)  # whose files may change
        defaults = (_defaults.__wrapped__ if of_others else _defaults)(command, tuple(choices))
        check_kinds(defaults, config, [key for key in keys if not key.startswith("hydra")])


@cache
def _defaults(command: str, choices: tuple[str, ...]) -> DictConfig:
    """What a command's configuration is with these options of groups; never to be changed, since it is kept."""
    return compose(command, overrides=list(choices))


def _is_choice(override: Any) -> bool:
    """Whether an override chooses an option of a group, or says where Hydra looks for them."""
    return override.key_or_group.startswith("hydra") or _is_group(override.key_or_group)


@cache  # Hydra reads its search path anew at each question, which takes a third of a check
def _is_group(name: str) -> bool:
    with _config_loader() as loader:
        return bool(loader.get_group_options(name))


def _syntax_error(error: OverrideParseException) -> UserError:
    return UserError(
        expected="key=value or group=option",
        found=f"'{error.override}' ({str(error).splitlines()[0]})",
        remedy="""put a value with special characters in quotes, "key='a, b'" """.rstrip(),
    )


def _unknown_option(error: MissingConfigException, overrides: Sequence[str], loader: ConfigLoader) -> UserError:
    missing = str(error.missing_cfg_file)
    for word in overrides:
        key, _, value = word.partition("=")
        group = key.lstrip("+~").partition("@")[0]
        if f"{group}/{value}" == missing:
            return UserError(
                expected=f"an option of the group '{group}'",
                found=f"'{word}'",
                remedy=nearest(value, _options(group, loader)),
            )
    return UserError(
        expected="a configuration that exists",
        found=f"'{missing}', which does not",
        remedy="see the groups and their options with --help",
    )


def _options(group: str, loader: ConfigLoader, prefix: str = "") -> list[str]:
    """Every option of a group, those in its subgroups as `subgroup/option`."""
    found = [prefix + name for name in loader.get_group_options(group, ObjectType.CONFIG)]
    for subgroup in loader.get_group_options(group, ObjectType.GROUP):
        found += _options(f"{group}/{subgroup}", loader, f"{prefix}{subgroup}/")
    return found


def _explain(error: Exception, command: str, overrides: list[str]) -> UserError:
    message = str(error)
    if match := re.match(r"Could not override '([^']+)'", message):
        return _unknown_key(match[1], command, overrides)
    if match := re.match(r"Could not delete from config\. '([^']+)' does not exist", message):
        return _unknown_key(match[1], command, overrides)
    if match := re.match(r"Ambiguous value for argument '(.+)'", message):
        return UserError(
            expected="one value",
            found=f"several in '{match[1]}'",
            remedy="add -m to run each of them, or write [a,b] for a list",
        )
    lines = [line.strip() for line in message.splitlines() if line.strip() and "object_type" not in line]
    return UserError(
        expected=f"a valid configuration of '{command}'",
        found="; ".join(lines),
        remedy=f"see embodied {command} --help",
    )


def _unknown_key(key: str, command: str, overrides: list[str]) -> UserError:
    known = _known_keys(key, command, overrides)
    leaf = key.rpartition(".")[2]
    # `k` for `policy.k`, or `collection` for `collection@collect`.
    meant = [path for path in known.paths if path.rpartition(".")[2] == leaf]
    meant += [name for name in known.siblings if name.partition("@")[0] == key]
    remedy = f"did you mean '{meant[0]}'?" if meant else nearest(key, known.siblings)
    return UserError(expected=f"a key of '{command}'", found=f"'{key}'", remedy=remedy)


class _Known:
    """Keys that exist: those beside a wrong one, and all paths."""

    def __init__(self, siblings: list[str], paths: list[str]) -> None:
        self.siblings = siblings
        self.paths = paths


def _known_keys(key: str, command: str, overrides: list[str]) -> _Known:
    # The chosen options decide which keys exist, so only the wrong override is left out.
    rest = [word for word in overrides if word.lstrip("+~").partition("=")[0] != key]
    try:
        config = compose(command, overrides=rest, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        config = compose(command, return_hydra_config=True)
    choices = [choice for choice in config.hydra.runtime.choices if not choice.startswith("hydra/")]
    tree = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"]))
    paths = list(_paths(tree, ""))
    parent = key.rpartition(".")[0]
    while parent and not isinstance(OmegaConf.select(config, parent), DictConfig):
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    siblings = [path for path in paths if path.startswith(prefix) and "." not in path[len(prefix) :]]
    return _Known(sorted({*siblings, *(choices if not parent else [])}), paths)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in nested dicts that is no dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def _paths(tree: Any, prefix: str) -> Iterator[str]:
    """Dotted paths of every key of nested dicts."""
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")


def plain(config: DictConfig) -> Json:
    """Dictionaries and lists, with everything that they refer to in place."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
