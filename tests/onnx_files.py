"""Small ONNX networks for the tests, written byte by byte as protocol buffers; few of their fields are needed."""

from pathlib import Path

import numpy as np


def _number(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, content: int | bytes | str) -> bytes:
    """A field of a message: a whole number, a text or a message."""
    if isinstance(content, int):
        return _number(number << 3) + _number(content)
    content = content.encode() if isinstance(content, str) else content
    return _number(number << 3 | 2) + _number(len(content)) + content


def _tensor(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(_field(1, int(n)) for n in values.shape)
    return dims + _field(2, 1) + _field(8, name) + _field(9, values.astype("<f4").tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1, n)) for n in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _node(kind: str, inputs: list[str], output: str, attributes: bytes = b"") -> bytes:
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind) + attributes


def write_linear(path: Path, weight: np.ndarray, bias: np.ndarray, size: int, n_channels: int = 1) -> Path:
    """A network that answers weight @ (the pixels of its input, row by row) + bias.

    Args:
        path: the file.
        weight: (answer, n_channels * size * size).
        bias: (answer,).
        size: side of the input.
        n_channels: of the input.
    """
    transposed = _field(1, "transB") + _field(3, 1) + _field(20, 2)  # an attribute: name, whole number, its type
    graph = _field(1, _node("Flatten", ["face"], "flat"))
    graph += _field(1, _node("Gemm", ["flat", "weight", "bias"], "answer", _field(5, transposed)))
    graph += _field(2, "linear") + _field(5, _tensor("weight", weight)) + _field(5, _tensor("bias", bias))
    graph += _field(11, _value("face", (1, n_channels, size, size))) + _field(12, _value("answer", (1, len(bias))))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return path
