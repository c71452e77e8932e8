"""Random structures for property-based tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from equibit.structures import Structure

_TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12).filter(
    lambda text: not _reads_as_number(text)
)
_INFOS = st.dictionaries(
    st.from_regex(r"[a-z][a-z_0-9]{2,8}", fullmatch=True).filter(
        lambda key: key not in {"energy", "stress", "virial", "virials", "pbc", "info"}
    ),
    st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | _TEXTS,
    max_size=3,
)


def _reads_as_number(text: str) -> bool:
    """Extended XYZ cannot tell the text 12 from the number 12."""
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    for word in words or ["0"]:
        if word in {"T", "F", "True", "False", "true", "false", "TRUE", "FALSE"}:
            return True
        try:
            float(word)
        except ValueError:
            continue
        return True
    return False


@st.composite
def structures(draw: st.DrawFn, *, infos: bool = True, momenta: bool = True) -> Structure:
    n_atoms = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cell = rng.normal(size=(3, 3)) + 5 * np.eye(3) if draw(st.booleans()) else None
    pbc = [False] * 3 if cell is None else draw(st.tuples(*[st.booleans()] * 3))
    stress = rng.normal(size=(3, 3))
    energy = st.none() | st.floats(-1e7, 1e7)
    return Structure(
        numbers=rng.integers(1, 90, n_atoms),
        positions=rng.normal(size=(n_atoms, 3)) * 10.0 ** draw(st.integers(-3, 3)),
        cell=cell,
        pbc=pbc,
        energy=draw(energy),
        forces=rng.normal(size=(n_atoms, 3)) if draw(st.booleans()) else None,
        stress=stress + stress.T if cell is not None and draw(st.booleans()) else None,
        momenta=rng.normal(size=(n_atoms, 3)) if momenta and draw(st.booleans()) else None,
        info=draw(_INFOS) if infos else {},
    )


def assert_same(one: Structure, other: Structure) -> None:
    """Bit for bit the same, infos included."""
    np.testing.assert_array_equal(one.numbers, other.numbers)
    for name in ("positions", "cell", "pbc", "forces", "stress", "momenta"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
    assert one.energy == other.energy
    assert dict(one.info) == dict(other.info)
