"""The data sets that equibit knows by name: what they are, where they are, how they are checked."""

from __future__ import annotations

from dataclasses import dataclass

from equibit.structures import DatasetError, Units

RMD17_MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)
# What the MD17 archive calls the molecules; azobenzene and paracetamol came later.
_MD17_FILES = {name: f"md17_{name}.npz" for name in RMD17_MOLECULES} | {
    "benzene": "md17_benzene2017.npz",
    "azobenzene": "azobenzene_dft.npz",
    "paracetamol": "paracetamol_dft.npz",
}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a public archive.

    Attributes:
        filename: its name there and here.
        urls: where it is, the first to be tried first.
        size: bytes, or None where the archive does not say.
        md5: its MD5, which is what the archives publish, or None where they do not.
    """

    filename: str
    urls: tuple[str, ...]
    size: int | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Entry:
    """A named data set.

    Attributes:
        name: as users write it, ``rmd17/ethanol``.
        family: ``rmd17``, ``md17``, ``qm9`` or ``equibit``; also the folder it is looked for in.
        molecule: or None for a set of many.
        labels: whose energies and forces these are. rMD17 and MD17 share geometries, not labels.
        level_of_theory: of the labels.
        units: of the files, known from their documentation.
        files: paths, relative to a data folder, under which it may lie. For MD17 the first one is
            rMD17's file, which may hold the original labels beside the revised ones.
        remote: the public archive, or None for what comes with equibit.
        citation: how to cite it.
        licence: its licence.
    """

    name: str
    family: str
    molecule: str | None
    labels: str
    level_of_theory: str
    units: Units
    files: tuple[str, ...]
    remote: RemoteFile | None
    citation: str
    licence: str


_KCAL = Units("kcal/mol", "Å")

RMD17_ARCHIVE = RemoteFile(
    filename="rmd17.tar.bz2",
    urls=(
        "https://figshare.com/ndownloader/files/23950376",
        "https://archive.materialscloud.org/records/pfffs-fff86/files/rmd17.tar.bz2?download=1",
    ),
    size=1_066_301_513,
    md5="cb1a927628d96f2e966025da4fb63d18",
)
QM9_ARCHIVE = RemoteFile(
    filename="dsgdb9nsd.xyz.tar.bz2",
    urls=("https://ndownloader.figshare.com/files/3195389",),
    size=86_144_227,
    md5="ad1ebd51ee7f5b3a6e32e974e5d54012",
)
QM9_UNCHARACTERIZED = RemoteFile(
    filename="uncharacterized.txt",
    urls=("https://ndownloader.figshare.com/files/3195404",),
    size=486_752,
    md5="a361887bacb427b8a0ce7903d92a53b4",
)
QM9_CONVERTED = "qm9.npz"
MD17_LABELS = "md17_energies_split01"  # in some editions of rMD17's files


def _rmd17(molecule: str) -> Entry:
    filename = f"rmd17_{molecule}.npz"
    return Entry(
        name=f"rmd17/{molecule}",
        family="rmd17",
        molecule=molecule,
        labels="rmd17",
        level_of_theory="PBE/def2-SVP, tight grid and convergence",
        units=_KCAL,
        files=(
            f"rmd17/{filename}",
            f"rmd17/npz_data/{filename}",
            f"npz_data/{filename}",
            filename,
        ),
        remote=RMD17_ARCHIVE,
        citation="A. S. Christensen and O. A. von Lilienfeld, Mach. Learn.: Sci. Technol. 1, "
        "045018 (2020); doi:10.6084/m9.figshare.12672038",
        licence="CC0 1.0",
    )


def _md17(molecule: str) -> Entry:
    filename = _MD17_FILES[molecule]
    return Entry(
        name=f"md17/{molecule}",
        family="md17",
        molecule=molecule,
        labels="md17",
        level_of_theory="PBE+vdW-TS, the original labels with about 2 meV of noise in the energy",
        units=_KCAL,
        files=(f"rmd17/rmd17_{molecule}.npz", f"md17/{filename}", filename),
        remote=RemoteFile(filename, (f"http://www.quantum-machine.org/gdml/data/npz/{filename}",)),
        citation="S. Chmiela et al., Sci. Adv. 3, e1603015 (2017); quantum-machine.org",
        licence="see quantum-machine.org",
    )


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            name="ethanol-pbe",
            family="equibit",
            molecule="ethanol",
            labels="ethanol-pbe",
            level_of_theory="PBE/def2-SVP (PySCF), ethanol at 500 K",
            units=Units("eV", "Å"),
            files=("ethanol-pbe.npz",),
            remote=None,
            citation="the equibit developers; labels computed with PySCF",
            licence="MIT",
        ),
        *map(_rmd17, RMD17_MOLECULES),
        *map(_md17, RMD17_MOLECULES),
        Entry(
            name="qm9",
            family="qm9",
            molecule=None,
            labels="qm9",
            level_of_theory="B3LYP/6-31G(2df,p), electronic energy U0 − ZPVE",
            units=Units("Hartree", "Å"),
            files=(f"qm9/{QM9_CONVERTED}", "qm9/qm9_chno.npz", "qm9_chno.npz"),
            remote=QM9_ARCHIVE,
            citation="R. Ramakrishnan et al., Sci. Data 1, 140022 (2014); figshare collection "
            "978904",
            licence="CC0 1.0",
        ),
    )
}


def find_entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        DatasetError: no such name; the message lists what is close to it.
    """
    import difflib

    entry = ENTRIES.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, ENTRIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "`equibit data list` lists them"
        raise DatasetError(f"there is no file and no data set {name!r}; {hint}")
    return entry
