"""Arrays and tensors: what can be said of one without waiting for an accelerator, for other ranks, or for itself.

Whatever has a `device` that is not the CPU is described by type, shape and dtype and never read.
"""

from __future__ import annotations

import math
from typing import Any, Final

ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"

_MAX_PART_CHARS: Final = 64
_MAX_DIMENSIONS: Final = 32

# The plain descriptor: a metaclass may define a `__name__` of its own, and that may raise.
_name_of: Final = type.__dict__["__name__"].__get__


def has(kind: type, name: str) -> bool:
    """Return whether a class defines an attribute, without running anybody's `__getattr__`."""
    return any(name in vars(base) for base in kind.__mro__)


def type_name(value: object) -> str:
    """Return the name of an object's class, bounded, without asking the class; never raises."""
    name: str = _name_of(type(value))
    return name if len(name) <= _MAX_PART_CHARS else name[: _MAX_PART_CHARS - 1] + ELLIPSIS


def encodable(text: str) -> str:
    """Return a string that encodes to UTF-8: with lone surrogates escaped."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def has_device(value: object, kind: type) -> bool:
    """Return whether an object has a `device`, without running anybody's `__getattr__`."""
    return has(kind, "device") or (has(kind, "__dict__") and "device" in object.__getattribute__(value, "__dict__"))


def is_on_cpu(value: Any) -> bool:
    """Return whether an object says that it is on the CPU, as torch, JAX, TensorFlow and the array API say it."""
    device = value.device
    if callable(device):
        # A method, as JAX once had: even its text would hold the array's elements.
        return False
    for name in ("type", "platform"):
        text = getattr(device, name, None)
        if isinstance(text, str):
            return text.lower() == "cpu"
    text = str(device).lower()
    return text == "cpu" or "device:cpu:" in text


def is_readable(value: Any, kind: type) -> bool:
    """Return whether an array's elements can be read without waiting: for an accelerator, or for other ranks."""
    if has(kind, "device_mesh"):
        # A distributed tensor: reading it may be a collective.
        return False
    if has(kind, "is_ready") and not value.is_ready():
        # JAX computes in the background on the CPU, too.
        return False
    return is_on_cpu(value) if has(kind, "device") else has(kind, "__array_interface__")


def size_of(value: Any) -> int | None:
    """Return how many elements an array has, or None if its shape does not say."""
    shape = value.shape
    if not isinstance(shape, tuple) or not all(type(length) is int for length in shape):
        return None
    return math.prod(shape)


def described(value: Any) -> str:
    """Return what can be said of an array without reading it: `<Tensor shape=(2,) dtype=float32 device=cuda:0>`."""
    parts = [type_name(value)]
    for name in ("shape", "dtype", "device"):
        try:
            part = getattr(value, name)
            if callable(part):
                continue
            # As a plain tuple: torch prints its own kind with its name.
            text = str(tuple(map(int, part[:_MAX_DIMENSIONS])) if isinstance(part, tuple) else part)
        except Exception:  # noqa: BLE001, S112 - not every object has, or can say, all three
            continue
        parts.append(f"{name}={encodable(text[:_MAX_PART_CHARS])}")
    return f"<{' '.join(parts)}>"
