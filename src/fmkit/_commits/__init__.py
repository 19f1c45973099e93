"""Commits: the state of a run in one file, and the directory they stand in.

`_format` writes and reads one file, `_directory` keeps a run's files, `_encoding` turns
the state of callbacks into JSON and arrays, `_variables` says in which order the
variables of a model are listed.
"""

from fmkit._commits._directory import CommitDirectory
from fmkit._commits._encoding import decode, encode, is_storable
from fmkit._commits._format import (
    Commit,
    DamagedCommitError,
    commit_number,
    list_commits,
    pack,
    read_commit,
    read_meta,
    with_part,
    write_commit,
)

__all__ = [
    "Commit",
    "CommitDirectory",
    "DamagedCommitError",
    "commit_number",
    "decode",
    "encode",
    "is_storable",
    "list_commits",
    "pack",
    "read_commit",
    "read_meta",
    "with_part",
    "write_commit",
]
