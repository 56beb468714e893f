"""A trained policy on disk: `policy.json` (what it is) and `policy.safetensors` (its weights). Never pickle.

These two files are all that a robot needs: specs and normalisation travel in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from embodied.catalog import ENCODERS, POLICIES, STATE_ENCODER, lookup, make
from embodied.errors import UserError
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.types import Json, TaskSpec

FORMAT = "embodied-policy"
VERSION = 1
DESCRIPTION = "policy.json"
WEIGHTS = "policy.safetensors"
_PARTS = ("policy", "network", "task", "statistics", "step", "provenance")


@dataclass(frozen=True)
class PolicyDescription:
    """What must be known to build a policy and to trust its weights."""

    spec: TaskSpec
    policy: Json  # conf/policy: name and settings
    network: Json  # conf/network: name and settings
    task: Json  # conf/task: how to build the task it was trained on
    statistics: Json  # of the training data, key by key
    step: int  # training steps behind the weights
    provenance: Json  # store, configuration hash, code version
    encoder: Json = field(default_factory=lambda: dict(STATE_ENCODER))  # conf/encoder: name and settings

    def to_json(self) -> Json:
        return {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec.to_json(),
            **{name: getattr(self, name) for name in _PARTS},
            "encoder": self.encoder,
        }

    @staticmethod
    def from_json(data: Json) -> PolicyDescription:
        """Of data written before there were encoders, the encoder is that of state vectors.

        Raises:
            KeyError, TypeError: something is missing or of another kind.
        """
        parts = {name: data[name] for name in _PARTS}
        parts["encoder"] = dict(data.get("encoder", STATE_ENCODER))
        for named in ("policy", "network", "encoder"):
            parts[named]["name"]  # what they are is looked up by it
        return PolicyDescription(spec=TaskSpec.from_json(data["spec"]), **parts)


def build_policy(spec: TaskSpec, policy: Json, network: Json, encoder: Json = STATE_ENCODER) -> DenoisingPolicy:
    """A policy with fresh weights, from the names and settings of conf/policy, conf/network and conf/encoder.

    Raises:
        UserError: an unknown name, or a setting that one of them does not have or cannot take.
    """
    return make("policy", POLICIES, policy, spec, network, encoder)


def save_policy(folder: Path, policy: DenoisingPolicy, description: PolicyDescription) -> None:
    """Write both files into an existing folder."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": FORMAT})
    (folder / DESCRIPTION).write_text(json.dumps(description.to_json(), indent=2) + "\n")


def read_description(folder: Path) -> PolicyDescription:
    """
    Raises:
        UserError: `folder` holds no policy, or one of another format or a newer version.
    """
    path = folder / DESCRIPTION
    try:
        data: Any = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise KeyError("format")
        if data["version"] > VERSION:
            raise UserError(
                expected=f"a policy of version {VERSION} or older at {folder}",
                found=f"version {data['version']}",
                remedy="update this package",
            )
        return PolicyDescription.from_json(data)
    except FileNotFoundError as error:
        raise UserError(
            expected=f"a checkpoint at {folder} ({DESCRIPTION} and {WEIGHTS})",
            found=f"no {DESCRIPTION}",
            remedy="name a training run or one of its checkpoints",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            expected=f"a policy description in {path}",
            found=f"something unreadable ({type(error).__name__}: {error})",
            remedy="name another checkpoint, or train again",
        ) from error


def without_start_settings(encoder: Json) -> Json:
    """The weights that training started from need not be on the machine that runs its result."""
    start_settings = lookup("encoder", ENCODERS, encoder["name"]).start_settings
    return {key: None if key in start_settings else value for key, value in encoder.items()}


def load_policy(folder: Path, device: str | torch.device = "cpu") -> tuple[DenoisingPolicy, PolicyDescription]:
    """The policy in evaluation mode, and its description.

    Raises:
        UserError: missing or damaged files, or weights whose names or shapes are not those of the described policy.
    """
    description = read_description(folder)
    return _with_weights(folder, description).to(device).eval(), description


def load_configured(
    folder: Path, settings: Mapping[str, Any], device: str | torch.device = "cpu"
) -> tuple[DenoisingPolicy, PolicyDescription]:
    """As `load_policy`, with run-time settings.

    A sampler of whole chunks (`policy.sampler`) also runs the weights of a policy that has no such choice, if its
    training showed them what that sampler asks; the description is then that of policy=diffusion.

    Raises:
        UserError: as `load_policy`, or settings that the policy does not have or cannot run with.
    """
    description = read_description(folder)
    trained_as = description.policy["name"]
    kind = lookup("policy", POLICIES, trained_as)
    if "sampler" in settings:
        description = replace(description, policy=kind.as_whole_chunks(description.policy))
    policy = _with_weights(folder, description)
    if description.policy["name"] != trained_as:
        policy.trained_as = trained_as
    policy = policy.to(device).eval()
    policy.configure(**settings)
    return policy, description


def _with_weights(folder: Path, description: PolicyDescription) -> DenoisingPolicy:
    encoder = without_start_settings(description.encoder)
    try:
        policy = build_policy(description.spec, description.policy, description.network, encoder)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            expected=f"settings in {folder / DESCRIPTION} that a policy can be made of",
            found=f"others ({type(error).__name__}: {' '.join(str(error).split())})",
            remedy="name another checkpoint, or train again",
        ) from error
    try:
        weights = load_file(folder / WEIGHTS)
        policy.load_state_dict(weights, strict=True)
    except FileNotFoundError as error:
        raise UserError(
            expected=f"{WEIGHTS} beside {DESCRIPTION} in {folder}", found="none", remedy="copy both files"
        ) from error
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            expected=f"weights in {folder / WEIGHTS} that fit {DESCRIPTION}",
            found=" ".join(str(error).split()),
            remedy="name another checkpoint, or train again",
        ) from error
    return policy
