"""What kind of value each key of the configuration takes: that of its default."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from embodied.errors import UserError

# The last part of keys whose default is null or looks whole: its place says nothing of their kind.
KINDS: dict[str, type | None] = {
    "workers": int,
    "k": int,
    "initial_calls": int,
    "calls": int,
    "warm_level": int,
    "inference_delay": int,
    "ema_power": float,
    "control_hz": float,
    "recordings": None,  # a number or a word
}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "keys"}


def check_kinds(defaults: DictConfig, config: DictConfig, keys: list[str]) -> None:
    """Compare the values of some dotted keys with those of their defaults.

    Raises:
        UserError: a value of another kind, such as a word for a number; names the key.
    """
    for key in keys:
        default, value = OmegaConf.select(defaults, key), OmegaConf.select(config, key)
        kind = _kind(default)
        if kind not in (list, dict):
            kind = KINDS.get(key.rpartition(".")[2], kind)
        if kind is None or (value is None and default is None) or _is_of(kind, value):
            continue
        example = "" if default is None else f", for example {key}={default}"
        raise UserError(
            expected=f"{WORDS[kind]} for {key}", found=f"{key}={value}", remedy=f"give it as {WORDS[kind]}{example}"
        )


def _kind(default: Any) -> type | None:
    """Which of `WORDS` a default is; None for text and null, which take anything."""
    if isinstance(default, ListConfig):
        return list
    if isinstance(default, DictConfig):
        return dict
    return next((kind for kind in (bool, int, float) if isinstance(default, kind)), None)


def _is_of(kind: type, value: Any) -> bool:
    if kind in (list, dict):
        return _kind(value) is kind
    return type(value) is kind or (kind is float and type(value) is int)
