"""LeRobot's async inference protocol: its robot client speaks to this server as to its own.

    Ready                    a new episode
    SendPolicyInstructions   the order of the robot's motors; which policy is served is not the client's to say
    SendObservations         keeps the newest one
    GetActions               waits for one, answers with its chunk; after a while with nothing

Each connection is a session. Nothing that a client sends is unpickled by Python (`lerobot_pickle`).
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc

from embodied.errors import UserError
from embodied.serving import lerobot_messages as messages
from embodied.serving.access import check_exposure, may_enter
from embodied.serving.answers import Answer
from embodied.serving.lerobot_observation import as_message, lerobot_keys
from embodied.serving.lerobot_peers import LeRobotPeer, LeRobotPeers, NobodyNew
from embodied.serving.lerobot_reply import timed_actions
from embodied.serving.lerobot_values import TimedObservation, read_instructions, read_observation
from embodied.serving.observation_reader import ObservationReader
from embodied.serving.registry import SessionsFull
from embodied.serving.served_session import Frame
from embodied.serving.sessions import Sessions

LOG = logging.getLogger(__name__)
LONGEST_MESSAGE_BYTES = 4 * 2**20  # of one gRPC message; LeRobot's chunks have 2 MB


@dataclass(frozen=True)
class LeRobotSettings:
    """conf/serve.yaml's `lerobot`."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    keys: Mapping[str, str] | None = None  # our names -> LeRobot's, where they differ
    poll_s: float = 2.0  # that GetActions waits for an observation
    observation_s: float = 10.0  # within which the chunks of one observation have to come
    idle_s: float = 120.0  # after which a connection without a call is forgotten
    largest_observation_bytes: int = 32 * 2**20
    most_connections: int = 16
    api_key: str | None = None  # LeRobot's own client cannot send one
    allows_anybody: bool = False  # on a public address without a key


class LeRobotServer:
    """The gRPC side of the policy server, in threads of its own."""

    def __init__(self, sessions: Sessions, settings: LeRobotSettings, **reader: Any) -> None:
        """
        Args:
            reader: further arguments of `ObservationReader`, such as `statistics` and `range_margin`.

        Raises:
            UserError: keys that the policy's spec does not have, or a public address without an API key.
        """
        check_exposure(settings.host, settings.api_key, settings.allows_anybody)
        self._settings = settings
        self._service = LeRobotService(sessions, settings, **reader)
        workers = 3 * settings.most_connections + 2  # each may wait for actions while it sends, and be opened anew
        self._server = grpc.server(
            futures.ThreadPoolExecutor(workers, thread_name_prefix="lerobot"),
            maximum_concurrent_rpcs=workers,
            options=[
                ("grpc.max_receive_message_length", LONGEST_MESSAGE_BYTES),
                ("grpc.max_send_message_length", LONGEST_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 20_000),  # so that half-open connections end
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
        )
        self._server.add_generic_rpc_handlers((self._service.handlers(),))
        self.port: int | None = None

    @property
    def reader(self) -> ObservationReader:
        return self._service.reader

    def start(self) -> int:
        """Begin to listen. Returns the port.

        Raises:
            UserError: the port is in use, or the address is none of this machine's.
        """
        host = self._settings.host
        address = f"{f'[{host}]' if ':' in host else host}:{self._settings.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise UserError(
                expected=f"{address} to be free",
                found="an address that cannot be listened on",
                remedy="change lerobot.port",
            ) from error
        self._service.start()
        self._server.start()
        return self.port

    def drain(self, timeout_s: float) -> None:
        """Let nobody new in, wait for those who still ask, then `stop`."""
        self._service.drain(timeout_s)
        self.stop()

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new calls, let those that run end within `grace_s`, and close every session."""
        self._service.stop()
        self._server.stop(grace_s).wait()
        self._service.close()


class LeRobotService:
    """The four calls, without the network."""

    def __init__(self, sessions: Sessions, settings: LeRobotSettings, **reader: Any) -> None:
        self._sessions, self._settings = sessions, settings
        keys = lerobot_keys(sessions.spec, settings.keys)
        self.reader = ObservationReader(sessions.spec, keys, **reader)
        self._image_sizes = {keys[f"images/{c.name}"]: (c.height, c.width) for c in self.reader.inputs.cameras}
        self._peers = LeRobotPeers(sessions, settings.most_connections, settings.idle_s, settings.observation_s)

    def start(self) -> None:
        self._peers.start()

    def drain(self, timeout_s: float) -> None:
        self._peers.drain(timeout_s)

    def stop(self) -> None:
        """End the calls that wait."""
        self._peers.stop()

    def close(self) -> None:
        self._peers.close()

    def handlers(self) -> grpc.GenericRpcHandler:
        calls = {
            "Ready": _unary(self._guarded(self.ready), messages.Empty),
            "SendPolicyInstructions": _unary(self._guarded(self.send_policy_instructions), messages.PolicySetup),
            "GetActions": _unary(self._guarded(self.get_actions), messages.Empty),
            "SendObservations": grpc.stream_unary_rpc_method_handler(
                self._guarded(self.send_observations),
                request_deserializer=messages.Observation.FromString,
                response_serializer=_serialized,
            ),
        }
        return grpc.method_handlers_generic_handler(f"{messages.PACKAGE}.{messages.SERVICE}", calls)

    def ready(self, request: Any, peer: LeRobotPeer, context: grpc.ServicerContext) -> Any:
        peer.reset()
        return messages.Empty()

    def send_policy_instructions(self, request: Any, peer: LeRobotPeer, context: grpc.ServicerContext) -> Any:
        peer.instructions = read_instructions(request.data)
        LOG.info("instructions", extra={"connection": peer.name, "actions": peer.instructions.actions_per_chunk})
        return messages.Empty()

    def send_observations(self, chunks: Iterator[Any], peer: LeRobotPeer, context: grpc.ServicerContext) -> Any:
        with self._peers.timed(peer, context):
            data = messages.reassembled(chunks, self._settings.largest_observation_bytes)
        received_s = time.monotonic()
        try:
            seen = read_observation(data)
            observation = self.reader.read(as_message(seen, peer.instructions, self._image_sizes))
        except UserError as error:
            self._sessions.refused(peer.name, peer.name, received_s, error)
            raise
        peer.offer(seen, observation)
        return messages.Empty()

    def get_actions(self, request: Any, peer: LeRobotPeer, context: grpc.ServicerContext) -> Any:
        waiting = peer.awaited(self._settings.poll_s)
        if waiting is None:
            return messages.Actions()
        seen, observation, executed, time_s = waiting
        received_s = time.monotonic()
        answer = self._sessions.act(
            peer.name,
            peer.name,
            Frame(observation, time_s),
            deadline_s=self._sessions.settings.longest_wait_s,  # its actions go on meanwhile: never a stale chunk
            executed=executed,
            received_s=received_s,
        )
        peer.answered(seen)
        reply = messages.Actions(data=_reply(answer, seen, peer.most_actions))
        self._sessions.sent(peer.name, received_s)  # gRPC sends it once this call is over
        return reply

    def _guarded(self, call: Callable[..., Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        """With the caller's session, and every error as a status code with a sentence."""

        @functools.wraps(call)
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                self._check(context)
                with self._peers.calling(context.peer()) as peer:
                    return call(request, peer, context)
            except SessionsFull as error:
                code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
            except NobodyNew as error:
                code, reason = grpc.StatusCode.UNAVAILABLE, str(error)
            except _Refused as error:
                code, reason = error.code, str(error)
            except UserError as error:
                code, reason = grpc.StatusCode.INVALID_ARGUMENT, str(error)
            except grpc.RpcError:  # the client is gone, or was too slow
                code, reason = grpc.StatusCode.CANCELLED, "the observation did not come in time"
            except Exception as error:
                LOG.exception("a call of LeRobot's protocol failed")
                code, reason = grpc.StatusCode.INTERNAL, f"a defect of the server ({type(error).__name__})"
            self._sessions.metrics.dropped("refused")
            LOG.warning("refused", extra={"connection": context.peer(), "why": reason})
            context.abort(code, reason)

        return guarded

    def _check(self, context: grpc.ServicerContext) -> None:
        headers = dict(context.invocation_metadata())
        authorization = headers.get("authorization")
        if not may_enter(authorization if isinstance(authorization, str) else None, self._settings.api_key):
            raise _Refused(
                grpc.StatusCode.UNAUTHENTICATED,
                expected="the header `authorization: Api-Key ...` with the server's key",
                found="none" if authorization is None else "another one",
                remedy="LeRobot's own client sends none: reach the server through a tunnel to its loopback address",
            )
        if not self._sessions.is_ready:
            raise _Refused(
                grpc.StatusCode.UNAVAILABLE,
                expected="a policy that is warmed up",
                found="one that is not yet, or a server that ends",
                remedy="try again in a moment",
            )


class _Refused(UserError):
    """With the status code that says it."""

    def __init__(self, code: grpc.StatusCode, **words: str) -> None:
        self.code = code
        super().__init__(**words)


def _reply(answer: Answer, seen: TimedObservation, most_actions: int) -> bytes:
    """The chunk by LeRobot's counting: the first action of a policy without a delay has the observation's own step."""
    chunk = answer.chunk
    begins = round((chunk.start_s - answer.observed_s) / chunk.dt_s)
    timestamp = seen.timestamp + begins * chunk.dt_s
    return timed_actions(chunk.actions[:most_actions], timestamp, seen.timestep + begins, chunk.dt_s)


def _unary(call: Callable[[Any, grpc.ServicerContext], Any], request: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=_serialized
    )


def _serialized(message: Any) -> bytes:
    return message.SerializeToString()
