"""A policy on a port: its sessions, the protocol, the pages, put together."""

from __future__ import annotations

import logging

from embodied.protocols import Policy
from embodied.serving.access import TokenBucket
from embodied.serving.description import metadata, spec_document
from embodied.serving.http_routes import HttpRoutes
from embodied.serving.metrics import ServingMetrics
from embodied.serving.observation_reader import ObservationReader
from embodied.serving.openpi_conversation import OpenpiConversation
from embodied.serving.openpi_server import ListeningSettings, OpenpiServer
from embodied.serving.recorder import RecordingQueue
from embodied.serving.request_reader import RequestReader
from embodied.serving.sessions import Sessions, SessionSettings
from embodied.types import Observation

LOG = logging.getLogger(__name__)


class PolicyServer:
    """Listens from the beginning; `/healthz` says OK once the policy is warmed up."""

    def __init__(
        self,
        policy: Policy,
        reader: ObservationReader,
        sessions: SessionSettings,
        listening: ListeningSettings,
        *,
        weights: str = "",
        refuses_by_text: bool = False,
        metrics: ServingMetrics | None = None,
        recording: RecordingQueue | None = None,
    ) -> None:
        """
        Raises:
            UserError: the address cannot be listened on.
        """
        self.sessions = Sessions(policy, sessions, weights=weights, metrics=metrics, recording=recording)
        self.reader, self._refuses_by_text = reader, refuses_by_text
        self._state = "warming up"
        routes = HttpRoutes(
            state=lambda: self._state,
            metrics=self.sessions.metrics.text,
            spec=lambda: spec_document(self.sessions, self.reader),
        )
        self._server = OpenpiServer(
            listening,
            self._conversation,
            lambda: metadata(self.sessions, self.reader),
            routes,
            dropped=self.sessions.metrics.dropped,
        )
        self.address = self._server.address

    def start(self, observation: Observation) -> None:
        """Answer from now on: robots that come before the warm-up is over wait for it.

        Args:
            observation: of the policy's spec, to warm up with.

        Raises:
            UserError: the policy cannot act.
        """
        self._server.start()
        self.sessions.start(observation)
        self._state = "OK"
        LOG.info("ready", extra={"address": self.address, "policy": self.sessions.policy.label})

    def swap(self, policy: Policy, weights: str, observation: Observation) -> None:
        """Go on with another checkpoint; see `Sessions.swap`."""
        self.sessions.swap(policy, weights, observation)

    def begin_drain(self, timeout_s: float) -> None:
        """Nobody new from now on, and `/healthz` says so; whoever is here goes on until `drain` is over.

        Args:
            timeout_s: that they are going to have.
        """
        if self._state == "draining":
            return
        self._state = "draining"
        self._server.refuse_new()
        LOG.info("draining", extra={"sessions": self.sessions.open_sessions, "timeout_s": timeout_s})

    def drain(self, timeout_s: float) -> None:
        """Nobody new; whoever is here has this long to finish; then everything is closed."""
        self.begin_drain(timeout_s)
        self._server.drain(timeout_s)
        self.sessions.stop()
        LOG.info("ended")

    def _conversation(self, name: str, rate: TokenBucket) -> OpenpiConversation:
        reader = RequestReader(self.reader, self.sessions.policy.history)
        return OpenpiConversation(name, self.sessions, reader, rate=rate, refuses_by_text=self._refuses_by_text)
