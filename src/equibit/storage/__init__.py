"""Files that are either complete or absent: atomic writers and the checked container format."""

from equibit.storage.atomic import WriteError, atomic_bytes, atomic_path, atomic_text
from equibit.storage.container import Container, read_container, write_container
from equibit.storage.versions import CURRENT_VERSIONS

__all__ = [
    "CURRENT_VERSIONS",
    "Container",
    "WriteError",
    "atomic_bytes",
    "atomic_path",
    "atomic_text",
    "read_container",
    "write_container",
]
