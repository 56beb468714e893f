"""`embodied serve`: a checkpoint to robots, in real time, until it is told to end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

from omegaconf import DictConfig, OmegaConf

from embodied.commands.served_checkpoint import ServedCheckpoint, load_checkpoint
from embodied.commands.served_recording import ServedRecording, is_recording, recording
from embodied.console import say
from embodied.errors import UserError
from embodied.serving.access import API_KEY_VARIABLE, check_exposure, is_loopback
from embodied.serving.description import largest_frame
from embodied.serving.json_lines import log_to
from embodied.serving.observation_reader import ObservationReader, range_limits
from embodied.serving.openpi_server import ListeningSettings
from embodied.serving.policy_server import PolicyServer
from embodied.serving.sessions import SessionSettings
from embodied.serving.tls import server_context
from embodied.types import Json

if TYPE_CHECKING:
    from embodied.serving.lerobot_grpc import LeRobotServer  # imports grpc, which not everybody has

LOG = logging.getLogger("embodied.serving.command")
REFUSALS = ("answer", "text")


def run(config: DictConfig) -> Path | None:
    """Serve until SIGTERM or SIGINT; SIGHUP goes on with the run's newest checkpoint.

    Returns:
        The path of summary.json, where sessions were recorded.

    Raises:
        UserError: a checkpoint that does not load, an address that cannot be listened on, a public one without a key,
            a certificate that is not valid, or a setting that makes no sense.
    """
    check(config)
    is_recording(config)
    api_key = os.environ.get(API_KEY_VARIABLE)
    check_exposure(config.host, api_key, config.allow_anybody)
    tls = _tls(config)
    checkpoint = load_checkpoint(config)
    handler = log_to(sys.stderr)
    try:
        _hint_at_proxies()
        with recording(config, checkpoint) as record:
            server = _server(config, checkpoint, api_key, tls, record)
            lerobot = _lerobot(config, server, checkpoint, api_key) if config.lerobot.on else None
            _serve(config, server, lerobot, record, checkpoint)
        return None if record is None else record.summary
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
    above_zero |= {f"lerobot.{key}": config.lerobot[key] for key in config.lerobot if key not in ("on", "port", "keys")}
    del above_zero["sessions.repeats_history"]
    for name, value in above_zero.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and value > 0):
            raise UserError(expected=f"{name} above 0", found=str(value), remedy=f"set {name} to what is wanted")
    for name in ("drain_s", "range_margin"):
        value = config[name]
        if value is not None and not value >= 0:  # a negative margin refuses what the policy was trained on
            raise UserError(expected=f"{name} of 0 or more", found=str(value), remedy=f"set {name} to what is wanted")
    for name, port in (("port", config.port), ("lerobot.port", config.lerobot.port)):
        if not 0 <= port <= 65535:
            raise UserError(
                expected=f"{name} between 0 and 65535", found=str(port), remedy="choose 8000, for example; 0: any"
            )


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
    config: DictConfig,
    checkpoint: ServedCheckpoint,
    api_key: str | None,
    tls: SSLContext | None,
    record: ServedRecording | None,
) -> PolicyServer:
    settings: Json = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    policy = checkpoint.policy
    reader = ObservationReader(
        policy.spec,
        settings["observation_keys"],
        inputs=checkpoint.inputs,
        statistics=checkpoint.statistics,
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
        metrics=None if record is None else record.metrics,
        recording=None if record is None else record.queue,
    )


def _lerobot(
    config: DictConfig, server: PolicyServer, checkpoint: ServedCheckpoint, api_key: str | None
) -> LeRobotServer:
    """The gRPC side, on the same sessions.

    Raises:
        UserError: its packages are not installed, or keys that the policy's spec does not have.
    """
    try:
        from embodied.serving.lerobot_grpc import LeRobotServer, LeRobotSettings
    except ImportError as error:
        raise UserError(
            expected="the packages grpcio and protobuf, for lerobot.on=true",
            found=str(error),
            remedy="pip install 'embodied-policies[grpc]'",
        ) from error
    settings: Json = OmegaConf.to_container(config.lerobot, resolve=True)  # type: ignore[assignment]
    del settings["on"]
    if not is_loopback(config.host):
        LOG.warning("LeRobot's protocol has no TLS: whoever is between moves the robot", extra={"host": config.host})
    return LeRobotServer(
        server.sessions,
        LeRobotSettings(host=config.host, api_key=api_key, allows_anybody=config.allow_anybody, **settings),
        inputs=checkpoint.inputs,
        statistics=checkpoint.statistics,
        range_margin=config.range_margin,
    )


def _serve(
    config: DictConfig,
    server: PolicyServer,
    lerobot: LeRobotServer | None,
    record: ServedRecording | None,
    checkpoint: ServedCheckpoint,
) -> None:
    end, reload = threading.Event(), threading.Event()

    def on_signal(number: int, frame: object) -> None:
        (reload if number == signal.SIGHUP else end).set()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    drains = [server.drain]  # the last one first: they share the time, and the first one stops the sessions
    readers = [server.reader] if lerobot is None else [server.reader, lerobot.reader]
    try:
        server.start(checkpoint.warm_up_observation())
        say(f"{checkpoint.policy.spec.task}, {checkpoint.policy.label}: {server.address}")
        if lerobot is not None:
            say(f"LeRobot's robot clients: {config.host}:{lerobot.start()}")
            drains.append(lerobot.drain)
        while not end.wait(0.2):
            if reload.is_set():
                reload.clear()
                checkpoint = _swapped(config, server, readers, checkpoint)
                if record is not None:
                    record.swapped(checkpoint)
    finally:
        server.begin_drain(config.drain_s)
        until_s = time.monotonic() + config.drain_s
        for drain in reversed(drains):
            drain(max(0.0, until_s - time.monotonic()))
        for number, previous in before.items():
            signal.signal(number, previous)


def _swapped(
    config: DictConfig, server: PolicyServer, readers: Sequence[ObservationReader], present: ServedCheckpoint
) -> ServedCheckpoint:
    """The checkpoint that is served now: the run's newest, or the present one if that cannot be served.

    Args:
        readers: that check observations by the served checkpoint's training data.
    """
    metrics = server.sessions.metrics
    try:
        newest = load_checkpoint(config)
        _check_inputs(newest, present)
        if newest.weights == present.weights:
            LOG.info("no other checkpoint", extra={"checkpoint": str(newest.path)})
            return present
        limits = range_limits(newest.inputs, newest.statistics, config.range_margin)  # before: it may fail
        server.swap(newest.policy, newest.weights, newest.warm_up_observation())
    except UserError as error:  # a file that is being written, perhaps
        metrics.swapped("refused")
        LOG.error("the checkpoint stays", extra={"why": str(error)})
        return present
    except Exception as error:  # whatever is wrong with it, robots are connected to the present one
        metrics.swapped("refused")
        LOG.exception("the checkpoint stays", extra={"why": f"{type(error).__name__}: {error}"})
        return present
    for reader in readers:
        reader.limits = limits
    metrics.swapped("done")
    LOG.info("swapped", extra={"checkpoint": str(newest.path), "weights": newest.weights})
    return newest


def _check_inputs(newest: ServedCheckpoint, present: ServedCheckpoint) -> None:
    """
    Raises:
        UserError: the newest policy sees other parts of the observations, which robots may not send.
    """
    if differences := newest.inputs.differences(present.inputs):
        raise UserError(
            expected="a policy that sees what the present one sees",
            found="; ".join(differences[:3]),
            remedy="start another server for it",
        )


def _hint_at_proxies() -> None:
    """openpi's client goes through the environment's proxy even to this machine; ours does not."""
    proxies = [f"{kind}_proxy" for kind in getproxies() if kind != "no"]  # of upper case too
    if proxies and not proxy_bypass("127.0.0.1"):
        LOG.warning(
            "a proxy is set: clients on this machine need no_proxy=127.0.0.1,localhost",
            extra={"variables": ", ".join(proxies)},
        )
