"""Packed codes take the bytes they claim and come back unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from equibit.quantization.packing import (
    grid_steps,
    pack_codes,
    pack_steps,
    unpack_codes,
    unpack_steps,
)
from equibit.structures.errors import FileFormatError


@given(st.data(), st.integers(2, 8) | st.just(16))
def test_codes_of_any_width_return(data: st.DataObject, bits: int) -> None:
    half = 2 ** (bits - 1)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7))
    kind = np.int8 if bits <= 8 else np.int16
    codes = data.draw(hnp.arrays(kind, shape, elements=st.integers(-half, half - 1)))
    packed = pack_codes(codes, bits)
    assert packed.nbytes == -(-codes.size * bits // 8)
    back = unpack_codes(packed, bits, shape)
    assert back.dtype == kind
    np.testing.assert_array_equal(back, codes)


def test_four_bit_codes_share_bytes_low_half_first() -> None:
    np.testing.assert_array_equal(pack_codes(np.array([1, -2, 7, -8]), 4), [0xE1, 0x87])


def test_sixteen_bits_are_stored_with_the_lower_byte_first() -> None:
    codes = np.array([0x3F80, -0x4000 + 1])  # 1.0 and what follows −2 in bfloat16
    np.testing.assert_array_equal(pack_codes(codes, 16), [0x80, 0x3F, 0x01, 0xC0])


def test_codes_too_wide_are_refused() -> None:
    with pytest.raises(ValueError, match="too wide for 4 bits"):
        pack_codes(np.array([8]), 4)


def test_a_truncated_array_is_refused() -> None:
    with pytest.raises(FileFormatError, match="cannot hold"):
        unpack_codes(np.zeros(3, np.uint8), 4, (4, 4))


@given(hnp.arrays(np.int64, 5, elements=st.integers(-300, -60)))
def test_steps_on_the_grid_take_one_byte(indices: np.ndarray) -> None:
    packed = pack_steps(grid_steps(indices))
    assert packed.format == "log2"
    assert packed.values.dtype == np.uint8
    np.testing.assert_array_equal(unpack_steps(packed), grid_steps(indices))


@given(hnp.arrays(np.float32, 4, elements=st.floats(0, 2.0**100, width=32)))
def test_any_steps_return_exactly(steps: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack_steps(pack_steps(steps)), steps)


def test_steps_exact_in_half_precision_are_stored_so() -> None:
    steps = np.array([0.75, 0.0, 1.5], np.float32)
    packed = pack_steps(steps)
    assert packed.format == "float16"
    assert pack_steps(np.array([0.1], np.float32)).format == "float32"
