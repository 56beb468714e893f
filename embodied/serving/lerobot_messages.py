"""The messages of LeRobot's async inference (package `transport`), described here, and their reassembly from chunks.

In a pool of descriptors of their own: LeRobot, if it is in the same process, registers messages of the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from embodied.errors import UserError

PACKAGE, SERVICE = "transport", "AsyncInference"
BEGIN, MIDDLE, END = 1, 2, 3  # of TransferState; a message of one chunk is an END alone
MOST_CHUNKS = 1024
_FIELD = descriptor_pb2.FieldDescriptorProto
_STATES = ("TRANSFER_UNKNOWN", "TRANSFER_BEGIN", "TRANSFER_MIDDLE", "TRANSFER_END")


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="embodied/lerobot_transport.proto", package=PACKAGE, syntax="proto3")
    states = file.enum_type.add(name="TransferState")
    for number, name in enumerate(_STATES):
        states.value.add(name=name, number=number)
    observation = file.message_type.add(name="Observation")
    enum, optional = _FIELD.TYPE_ENUM, _FIELD.LABEL_OPTIONAL
    type_name = f".{PACKAGE}.TransferState"
    observation.field.add(name="transfer_state", number=1, type=enum, label=optional, type_name=type_name)
    observation.field.add(name="data", number=2, type=_FIELD.TYPE_BYTES, label=optional)
    for name in ("Actions", "PolicySetup"):
        file.message_type.add(name=name).field.add(name="data", number=1, type=_FIELD.TYPE_BYTES, label=optional)
    file.message_type.add(name="Empty")
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_described())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


Observation, Actions, PolicySetup, Empty = map(_message, ("Observation", "Actions", "PolicySetup", "Empty"))


def reassembled(chunks: Iterable[Any], most_bytes: int) -> bytes:
    """The bytes of one message from its chunks.

    Raises:
        UserError: no end, chunks out of order, or more of them or of their bytes than are allowed.
    """
    parts: list[bytes] = []
    size = 0
    for count, chunk in enumerate(chunks):
        state = chunk.transfer_state
        size += len(chunk.data)
        if count >= MOST_CHUNKS or size > most_bytes:
            raise _unfit(f"more than {most_bytes} bytes or {MOST_CHUNKS} chunks")
        if state not in (BEGIN, MIDDLE, END) or (state == BEGIN) != (not parts and state != END):
            name = _STATES[state] if 0 <= state < len(_STATES) else str(state)
            raise _unfit(f"chunk {count} as {name}")
        parts.append(chunk.data)
        if state == END:
            return b"".join(parts)
    raise _unfit("no last chunk")


def _unfit(found: str) -> UserError:
    return UserError(
        expected="an observation in chunks: BEGIN, MIDDLE ..., END, or one END alone",
        found=found,
        remedy="use LeRobot 0.6's robot_client, or send smaller images",
    )
