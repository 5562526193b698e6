"""The check every stored array passes: element type, sides, finite values, and no way to write."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
Int64Array = npt.NDArray[np.int64]
MOST_CODE = 127  # as far as int8 goes to both sides


def float_matrix(value: Any) -> Float32Array:  # Any: array-like
    """Return a float32 matrix fit to be stored; see :func:`stored`."""
    return stored(value, "<f4", 2)


def float_vector(value: Any) -> Float32Array:  # Any: array-like
    """Return a float32 vector fit to be stored; see :func:`stored`."""
    return stored(value, "<f4", 1)


def whole_matrix(value: Any) -> Int64Array:  # Any: array-like
    """Return an int64 matrix fit to be stored; see :func:`stored`."""
    return stored(value, "<i8", 2)


def whole_vector(value: Any) -> Int64Array:  # Any: array-like
    """Return an int64 vector fit to be stored; see :func:`stored`."""
    return stored(value, "<i8", 1)


def code_matrix(value: Any) -> Int8Array:  # Any: array-like
    """Return an int8 matrix of numbers from -127 to 127 fit to be stored; see :func:`stored`."""
    given = np.asarray(value)
    if given.dtype.kind == "i" and given.size:
        low, high = int(given.min()), int(given.max())
        if low < -MOST_CODE or high > MOST_CODE:
            raise ValueError(f"codes must be from -{MOST_CODE} to {MOST_CODE}, got {low} to {high}")
    return stored(given, "|i1", 2)


def stored(value: Any, dtype: str, sides: int) -> npt.NDArray[Any]:  # Any: array-like
    """Return ``value`` as a read-only little-endian row-major array.

    Args:
        value: An array, or a tensor on the CPU.
        dtype: numpy name of the stored type, for example ``<f4``; other floats are cast to it.
        sides: Number of dimensions.

    Raises:
        ValueError: Another number of dimensions, an empty side, no numbers, or NaN or infinity.
    """
    given = np.asarray(value)
    wanted = np.dtype(dtype)
    if given.dtype.kind != wanted.kind:
        raise ValueError(f"an array must hold {wanted.name}, got {given.dtype.name}")
    if given.ndim != sides or 0 in given.shape:
        raise ValueError(f"an array must have {sides} sides of at least 1, got {given.shape}")
    array = given
    if given.flags.writeable or given.dtype != wanted or not given.flags.c_contiguous:
        with np.errstate(over="ignore"):  # an overflow is found just below
            array = np.array(given, dtype=wanted, order="C")
    if wanted.kind == "f" and not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"an array holds {array[place]} at {place}; every number must be finite")
    array.flags.writeable = False
    return array
