"""Commits: the state of a run in one file, and the directory that keeps them.

`_format` writes and reads one file, `_members` its arrays, `_meta` has the keys of the
rest. `_directory` keeps a run's files, `_encoding` turns the state of callbacks into
JSON and arrays, `_variables` says in which order the variables of a model are listed.
"""

from fmkit._commits._directory import CommitDirectory
from fmkit._commits._encoding import decode, encode, is_storable
from fmkit._commits._format import (
    Commit,
    DamagedCommitError,
    commit_number,
    list_averages,
    list_commits,
    number_in,
    pack_part,
    read_commit,
    read_meta,
    with_part,
    write_commit,
)
from fmkit._commits._meta import Meta, VariableEntry
from fmkit._commits._variables import group_variables, list_variables

__all__ = [
    "Commit",
    "CommitDirectory",
    "DamagedCommitError",
    "Meta",
    "VariableEntry",
    "commit_number",
    "decode",
    "encode",
    "group_variables",
    "is_storable",
    "list_averages",
    "list_commits",
    "list_variables",
    "number_in",
    "pack_part",
    "read_commit",
    "read_meta",
    "with_part",
    "write_commit",
]
