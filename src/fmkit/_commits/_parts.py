"""Parts of a commit: what each process of a job writes, to a file of its own.

A part holds what only its process has, and the pieces of the common arrays that fall to
it. Its name ends with a digest of its bytes, so whoever sees the name knows that the
part is whole. A list that names all parts is written last: it is the commit.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmkit._commits._archive import (
    DamagedCommitError,
    open_archive,
    read_arrays,
    read_header,
    write_archive,
)
from fmkit._commits._members import dtype_of
from fmkit._commits._meta import OF_EACH_PROCESS, Meta, check_keys
from fmkit._commits._sharded import (
    BLOCK,
    Box,
    PartFile,
    Piece,
    ShardedArray,
    StoredPiece,
)
from fmkit._files import whole_file

__all__ = [
    "Part",
    "PartPlace",
    "Shared",
    "assemble",
    "is_part",
    "list_of",
    "prefix_of",
    "read_parts",
]

Array = np.ndarray[Any, Any]

KIND = "fmkit part"
VERSION = 1
_NAME = re.compile(
    r"(?P<kind>averages-)?part-(?P<number>\d{8,18})-(?P<index>\d+)-of-(?P<count>\d+)"
    r"-(?P<token>[0-9a-f]{8})-(?P<digest>[0-9a-f]{32})\.npz"
)


class PartPlace(NamedTuple):
    """Which part of which commit.

    Attributes:
        list: The path of the list.
        process: The process that writes the part.
        processes: How many parts there are.
        token: Drawn for this commit. A process of a job that was killed may still be
            writing its part of a commit with the same number.
    """

    list: Path
    process: int
    processes: int
    token: str

    @property
    def prefix(self) -> str:
        """What the part's name begins with."""
        return f"{prefix_of(self.list)}{self.process}-of-{self.processes}-{self.token}-"

    def find(self, names: Sequence[str]) -> str | None:
        """Return the part's name among `names`, if it is there."""
        found = (name for name in names if name.startswith(self.prefix))
        return next(filter(is_part, found), None)


class Shared(NamedTuple):
    """What a process writes of a commit of a job.

    Attributes:
        place: Which part of which commit.
        meta: The meta; the list has that of process 0.
        arrays: The process's own arrays; the list has those of process 0.
        pieces: The pieces that the process writes.
        whole: Dtype and shape of each array that is written in pieces, by name.
    """

    place: PartPlace
    meta: Meta
    arrays: Mapping[str, Array]
    pieces: Sequence[Piece]
    whole: Mapping[str, dict[str, Any]]

    def write_part(self) -> None:
        """Write the part, so that it appears whole.

        Raises:
            OSError: If it cannot be written.
        """
        place = self.place
        of_others = place.process > 0
        meta = {name: getattr(self.meta, name) for name in OF_EACH_PROCESS}
        header = {
            "format": KIND,
            "version": VERSION,
            "own": meta if of_others else {},
            "pieces": [
                [name, piece.array, piece.box, piece.own]
                for name, piece in self._named_pieces()
            ],
        }
        temporary = place.list.with_name(f"{place.prefix}.npz")
        with whole_file(temporary, final=lambda: place.list.with_name(name())) as file:
            written = _Digested(file)

            def name() -> str:
                return f"{place.prefix}{written.digest.hexdigest()}.npz"

            arrays = self._members(self.arrays if of_others else {})
            write_archive(written, header, arrays)

    def _members(self, arrays: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        yield from arrays.items()
        for name, piece in self._named_pieces():
            yield name, piece.read()

    def _named_pieces(self) -> Iterator[tuple[str, Piece]]:
        for number, piece in enumerate(self.pieces):
            yield f"piece/{number}", piece

    def parts(self) -> list[dict[str, Any]] | None:
        """Return what the list says of the parts; `None` unless all are there."""
        directory = self.place.list.parent
        names = os.listdir(directory)
        places = [self.place._replace(process=i) for i in range(self.place.processes)]
        found = [name for each in places if (name := each.find(names)) is not None]
        if len(found) < self.place.processes:
            return None
        return [
            {"name": name, "size": os.stat(directory / name).st_size} for name in found
        ]


class _Digested:
    """A file that is written from its start to its end, with a digest of it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)  # type: ignore[no-any-return]

    def flush(self) -> None:
        self._file.flush()


def is_part(name: str) -> bool:
    """Whether this is the name of a part."""
    return _NAME.fullmatch(name) is not None


def list_of(name: str) -> str:
    """Return the name of the list that a part belongs to."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return f"{match['kind'] or 'commit-'}{match['number']}.npz"


def prefix_of(path: Path) -> str:
    """Return what the names of the parts of a list begin with."""
    kind, _, number = path.stem.partition("-")
    return f"{'' if kind == 'commit' else f'{kind}-'}part-{number}-"


# Reading


class Part(NamedTuple):
    """A part as read, but for its pieces.

    Attributes:
        own: The keys of the meta that are its process's own.
        arrays: Its process's own arrays, if they were asked for.
        common: The pieces that count for all processes, by the array's name.
        pieces: Those that count for its process, by the array's name.
    """

    own: dict[str, Any]
    arrays: dict[str, Array]
    common: list[tuple[str, StoredPiece]]
    pieces: list[tuple[str, StoredPiece]]


def read_parts(
    path: Path,
    listed: Sequence[Mapping[str, Any]],
    process: int,
    share: tuple[int, int],
) -> list[Part]:
    """Read the parts that a list names.

    Args:
        path: The list.
        listed: What it says of them.
        process: Whose own arrays are read.
        share: Which parts are compared with their digests, as `(index, count)`: number
            `index`, `index + count`, and so on. The others must have their size.

    Raises:
        DamagedCommitError: If one is missing or changed; the message names it.
        FileNotFoundError: If the list itself has been deleted meanwhile.
        OSError: If one cannot be read.
    """
    parts = []
    for index, each in enumerate(listed):
        try:
            part = path.with_name(str(each["name"]))
            _check(part, each, whole=index % share[1] == share[0])
            parts.append(_read(part, with_arrays=index == process))
        except FileNotFoundError:
            if not path.exists():
                raise
            raise DamagedCommitError(
                f"{path}: its part {each['name']} is missing"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error) or type(error).__name__
            raise DamagedCommitError(f"{path}: its part is damaged: {reason}") from None
    return parts


def _check(path: Path, listed: Mapping[str, Any], *, whole: bool) -> None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name!r} is not the name of a part")
    file = PartFile(path)
    size = os.fstat(file.file.fileno()).st_size
    if size != listed["size"]:
        raise ValueError(f"{path.name} has {size} bytes and had {listed['size']}")
    if not whole:
        return
    digest, block = hashlib.blake2b(digest_size=16), bytearray(min(BLOCK, size))
    for start in range(0, size, BLOCK):
        view = memoryview(block)[: size - start]
        file.read_into(start, view)
        digest.update(view)
    if digest.hexdigest() != match["digest"]:
        raise ValueError(f"{path.name} is not what was written")


def _read(path: Path, *, with_arrays: bool) -> Part:
    file = PartFile(path)
    with open_archive(path) as archive:
        header = read_header(archive, KIND, [VERSION])
        own = header["own"]
        if own:
            own = check_keys(own, OF_EACH_PROCESS)
        specs = dict(header["arrays"])
        found: dict[bool, list[tuple[str, StoredPiece]]] = {False: [], True: []}
        for member, name, box, is_own in header["pieces"]:
            piece = _piece(archive, file, member, specs.pop(member), box)
            found[bool(is_own)].append((name, piece))
        arrays = read_arrays(archive, specs) if with_arrays else {}
    return Part(own, arrays, found[False], found[True])


def _piece(
    archive: zipfile.ZipFile,
    file: PartFile,
    member: str,
    spec: Mapping[str, Any],
    listed: Sequence[Sequence[int]],
) -> StoredPiece:
    box: Box = tuple((int(start), int(stop)) for start, stop in listed)
    if spec["shape"] != [stop - start for start, stop in box]:
        raise ValueError(f"{member} has not the size of its place")
    info = archive.getinfo(f"{member}.npy")
    # The entry's fixed fields, its name, something more; then the array, and its values
    # are the end of that.
    archive.fp.seek(info.header_offset + 26)  # type: ignore[union-attr]
    name, more = struct.unpack("<HH", archive.fp.read(4))  # type: ignore[union-attr]
    end = info.header_offset + 30 + name + more + info.file_size
    size = math.prod(spec["shape"]) * dtype_of(spec["dtype"]).itemsize
    return StoredPiece(box, file, end - size)


def assemble(
    whole: Mapping[str, Mapping[str, Any]], parts: Sequence[Part], process: int
) -> dict[str, ShardedArray]:
    """Return the arrays that lie in pieces, as they are for one process.

    Raises:
        ValueError: If something is missing of one.
    """
    common: dict[str, list[StoredPiece]] = {name: [] for name in whole}
    for part in parts:
        for name, piece in part.common:
            common[name].append(piece)
    own = parts[process].pieces if process < len(parts) else []
    arrays = {}
    for name, spec in whole.items():
        shape = tuple(spec["shape"])
        sizes = [math.prod(b - a for a, b in piece.box) for piece in common[name]]
        if sum(sizes) != math.prod(shape):
            raise ValueError(f"the parts do not cover {name!r}")
        pieces = [*common[name], *(piece for other, piece in own if other == name)]
        arrays[name] = ShardedArray(dtype_of(spec["dtype"]), shape, pieces)
    return arrays
