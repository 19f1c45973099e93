"""Commits: the state of a run in one file, and the directory that keeps them.

`_format` writes and reads one file, `_archive` what all files have in common,
`_members` its arrays, `_meta` has the keys of the rest. `_parts` has what each process
of a job writes, `_sharded` the arrays that lie in pieces there. `_directory` keeps a
run's files, `_encoding` turns the state of callbacks into JSON and arrays, `_variables`
says in which order the variables of a model are listed.
"""

from fmkit._commits._archive import DamagedCommitError
from fmkit._commits._directory import CommitDirectory, warn_of_damage
from fmkit._commits._encoding import decode, encode, is_storable
from fmkit._commits._format import (
    Commit,
    commit_number,
    list_averages,
    list_commits,
    number_in,
    read_commit,
    read_meta,
    write_commit,
)
from fmkit._commits._members import dtype_of
from fmkit._commits._meta import Meta, VariableEntry
from fmkit._commits._parts import PartPlace, Shared
from fmkit._commits._sharded import Box, Piece, ShardedArray, box_of, cut
from fmkit._commits._variables import group_variables, list_variables

__all__ = [
    "Box",
    "Commit",
    "CommitDirectory",
    "DamagedCommitError",
    "Meta",
    "PartPlace",
    "Piece",
    "ShardedArray",
    "Shared",
    "VariableEntry",
    "box_of",
    "commit_number",
    "cut",
    "decode",
    "dtype_of",
    "encode",
    "group_variables",
    "is_storable",
    "list_averages",
    "list_commits",
    "list_variables",
    "number_in",
    "read_commit",
    "read_meta",
    "warn_of_damage",
    "write_commit",
]
