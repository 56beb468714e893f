"""A small ONNX file, byte by byte, since the package `onnx` is not among the dependencies.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FLOAT = 1  # TensorProto.DataType


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def nested(field: int, *content: bytes) -> bytes:
    joined = b"".join(content)
    return varint(field << 3 | 2) + varint(len(joined)) + joined


def text(field: int, value: str) -> bytes:
    return nested(field, value.encode())


def node(kind: str, inputs: list[str], output: str) -> bytes:
    return nested(1, *(text(1, name) for name in inputs), text(2, output), text(4, kind))


def tensor(name: str, values: np.ndarray) -> bytes:
    dims = [number(1, size) for size in values.shape]
    return nested(5, *dims, number(2, FLOAT), text(8, name), nested(9, values.astype("<f4").tobytes()))


def value(field: int, name: str, size: int) -> bytes:
    shape = nested(2, nested(1, number(1, 1)), nested(1, number(1, size)))
    return nested(field, text(1, name), nested(2, nested(1, number(1, FLOAT), shape)))


def write_affine_tanh(path: Path, weight_SA: np.ndarray, bias_A: np.ndarray) -> None:
    """tanh(x @ weight + bias) for x of [1 S]."""
    graph = nested(
        7,
        node("MatMul", ["x", "weight"], "product"),
        node("Add", ["product", "bias"], "sum"),
        node("Tanh", ["sum"], "y"),
        text(2, "affine_tanh"),
        tensor("weight", weight_SA),
        tensor("bias", bias_A),
        value(11, "x", weight_SA.shape[0]),
        value(12, "y", weight_SA.shape[1]),
    )
    path.write_bytes(number(1, 8) + nested(8, text(1, ""), number(2, 13)) + graph)
