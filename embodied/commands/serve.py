"""`embodied serve`: a checkpoint to robots, in real time, until it is told to end."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext

import torch
from omegaconf import DictConfig, OmegaConf

from embodied.commands.evaluated_policy import resolved_checkpoint
from embodied.console import say
from embodied.errors import UserError
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.policy_file import WEIGHTS, PolicyDescription, load_policy
from embodied.serving.access import API_KEY_VARIABLE, check_exposure, is_loopback
from embodied.serving.description import largest_frame
from embodied.serving.json_lines import log_to
from embodied.serving.observation_reader import ObservationReader
from embodied.serving.openpi_server import ListeningSettings
from embodied.serving.policy_server import PolicyServer
from embodied.serving.sessions import SessionSettings
from embodied.serving.tls import server_context
from embodied.serving.warm_up import made_observation
from embodied.types import Json, Observation

LOG = logging.getLogger("embodied.serving.command")
REFUSALS = ("answer", "text")
WEIGHTS_DIGITS = 12  # of the hash that answers carry


@dataclass(frozen=True)
class ServedCheckpoint:
    """A loaded policy, and what identifies it."""

    path: Path
    policy: DenoisingPolicy
    description: PolicyDescription
    weights: str  # the first digits of the hash of its weights

    def warm_up_observation(self) -> Observation:
        return made_observation(self.policy.spec, self.description.statistics)


def run(config: DictConfig) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP goes on with the run's newest checkpoint.

    Raises:
        UserError: a checkpoint that does not load, an address that cannot be listened on, a public one without a key,
            a certificate that is not valid, or a setting that makes no sense.
    """
    check(config)
    api_key = os.environ.get(API_KEY_VARIABLE)
    check_exposure(config.host, api_key, config.allow_anybody)
    tls = _tls(config)
    checkpoint = load_checkpoint(config)
    handler = log_to(sys.stderr)
    try:
        _hint_at_proxies()
        server = _server(config, checkpoint, api_key, tls)
        _serve(config, server, checkpoint)
    finally:
        logging.getLogger("embodied.serving").removeHandler(handler)


def check(config: DictConfig) -> None:
    """
    Raises:
        UserError: a number or a word of conf/serve.yaml that makes no sense.
    """
    if config.refusals not in REFUSALS:
        raise UserError(expected="refusals answer or text", found=str(config.refusals), remedy="use one of them")
    above_zero = {f"sessions.{key}": config.sessions[key] for key in config.sessions if key != "seed"}
    above_zero |= {f"listening.{key}": config.listening[key] for key in config.listening}
    del above_zero["sessions.repeats_history"]
    for name, value in above_zero.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and value > 0):
            raise UserError(expected=f"{name} above 0", found=str(value), remedy=f"set {name} to what is wanted")
    if not 0 <= config.port <= 65535:
        raise UserError(
            expected="a port between 0 and 65535", found=str(config.port), remedy="choose 8000, for example"
        )


def load_checkpoint(config: DictConfig) -> ServedCheckpoint:
    """The one that run= names now, configured as `policy` says.

    Raises:
        UserError: none there, one that does not load, settings that it cannot run with, or no such device.
    """
    path = resolved_checkpoint(config)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(expected="a CUDA device for device=cuda", found="none", remedy="serve with device=cpu")
    policy, description = load_policy(path, config.device)
    policy.configure(**{name: value for name, value in config.policy.items() if value is not None})
    weights = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()[:WEIGHTS_DIGITS]
    return ServedCheckpoint(path, policy, description, weights)


def _tls(config: DictConfig) -> SSLContext | None:
    certificate, key = config.tls.certificate, config.tls.key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UserError(
            expected="tls.certificate and tls.key together",
            found="tls.key alone" if certificate is None else "tls.certificate alone",
            remedy="name both PEM files, or none",
        )
    return server_context(Path(certificate), Path(key))


def _server(
    config: DictConfig, checkpoint: ServedCheckpoint, api_key: str | None, tls: SSLContext | None
) -> PolicyServer:
    settings: Json = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    policy = checkpoint.policy
    reader = ObservationReader(
        policy.spec,
        settings["observation_keys"],
        inputs=policy.inputs,
        statistics=checkpoint.description.statistics,
        range_margin=config.range_margin,
    )
    limits = dict(config.listening)
    limits["largest_frame"] = limits["largest_frame"] or largest_frame(reader, policy.history)
    if not is_loopback(config.host) and tls is None:
        LOG.warning("no TLS: whoever is between sees the key and moves the robot", extra={"host": config.host})
    return PolicyServer(
        policy,
        reader,
        SessionSettings(**config.sessions),
        ListeningSettings(host=config.host, port=config.port, api_key=api_key, tls=tls, **limits),
        weights=checkpoint.weights,
        refuses_by_text=config.refusals == "text",
    )


def _serve(config: DictConfig, server: PolicyServer, checkpoint: ServedCheckpoint) -> None:
    end, reload = threading.Event(), threading.Event()

    def on_signal(number: int, frame: object) -> None:
        (reload if number == signal.SIGHUP else end).set()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        server.start(checkpoint.warm_up_observation())
        say(f"{checkpoint.policy.spec.task}, {checkpoint.policy.label}: {server.address}")
        while not end.wait(0.2):
            if reload.is_set():
                reload.clear()
                checkpoint = _swapped(config, server, checkpoint)
    finally:
        server.drain(config.drain_s)
        for number, previous in before.items():
            signal.signal(number, previous)


def _swapped(config: DictConfig, server: PolicyServer, present: ServedCheckpoint) -> ServedCheckpoint:
    """The checkpoint that is served now: the run's newest, or the present one if that cannot be served."""
    metrics = server.sessions.metrics
    try:
        newest = load_checkpoint(config)
        _check_inputs(newest, present)
        if newest.weights == present.weights:
            LOG.info("no other checkpoint", extra={"checkpoint": str(newest.path)})
            return present
        server.swap(newest.policy, newest.weights, newest.warm_up_observation())
    except UserError as error:  # a file that is being written, perhaps
        metrics.swapped("refused")
        LOG.error("the checkpoint stays", extra={"why": str(error)})
        return present
    metrics.swapped("done")
    LOG.info("swapped", extra={"checkpoint": str(newest.path), "weights": newest.weights})
    return newest


def _check_inputs(newest: ServedCheckpoint, present: ServedCheckpoint) -> None:
    """
    Raises:
        UserError: the newest policy sees other parts of the observations, which robots may not send.
    """
    if differences := newest.policy.inputs.differences(present.policy.inputs):
        raise UserError(
            expected="a policy that sees what the present one sees",
            found="; ".join(differences[:3]),
            remedy="start another server for it",
        )


def _hint_at_proxies() -> None:
    """openpi's client goes through the environment's proxy even to this machine; ours does not."""
    proxies = [name for name in ("http_proxy", "https_proxy", "all_proxy") if os.environ.get(name)]
    if proxies and "127.0.0.1" not in os.environ.get("no_proxy", ""):
        LOG.warning(
            "a proxy is set: clients on this machine need no_proxy=127.0.0.1,localhost",
            extra={"variables": ", ".join(proxies)},
        )
