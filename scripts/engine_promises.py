"""Try what the engines' own checkpoints promise, and what a commit of fmkit does.

    python scripts/engine_promises.py

prints the table "What the engines' own checkpoints promise" of docs/guides/scaling.md,
and below it the counts that it rests on. A test compares the page with it.

- *A kill.* Before each call that changes a name or flushes a file (Python tells of
  them), the folder is copied: this is what a kill at that instant leaves. Each copy is
  read. What C++ writes between two such calls has no name yet that a reader looks at.
- *A power cut* can't be tried here. The table says which calls were made: a rename that
  no flush of its folder follows may be lost, or come before what was written earlier.
- *A flipped bit.* Single bits of the largest file, which has the numbers.
- *What can execute.* Each file in turn is made a pickle that executes when it is read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as orbax
from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from fmkit._commits import (
    CommitDirectory,
    Meta,
    Piece,
    Shared,
    list_commits,
    read_commit,
    write_commit,
)

FLIPS = 30
CALLS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
# Whatever an engine raises; PyTorch's is no `Exception`.
REFUSED = (Exception, dcp.CheckpointException)
META = Meta(variables=[])
Arrays = dict[str, Any]


def state(number: int) -> Arrays:
    """Return what the checkpoint of this number holds: noise, which no zip shortens."""
    random_numbers = np.random.default_rng(number)
    return {name: random_numbers.standard_normal((80, 80), np.float32) for name in "ab"}


def which(arrays: Arrays) -> str:
    """Return the number of the checkpoint that has these arrays."""
    for number in (1, 2):
        if all(np.array_equal(arrays[k], v) for k, v in state(number).items()):
            return str(number)
    return "neither"


class Engine(NamedTuple):
    """How an engine writes `state(number)` into a folder, and what it would read."""

    save: Callable[[Path, int], Any]
    newest: Callable[[Path], Path]
    load: Callable[[Path], Arrays]


def load_orbax(path: Path, like: Any = None) -> Arrays:
    """Return what a step of Orbax holds."""
    like = like or {k: np.zeros_like(v) for k, v in state(1).items()}
    return orbax.load_checkpointables(path, {"pytree": like})["pytree"]


def save_dcp(folder: Path, number: int) -> None:
    """Write `state(number)` into just this folder."""
    tensors = {k: torch.from_numpy(v) for k, v in state(number).items()}
    # A file per array, where a job has one per process: there can be more than one.
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=False)
    dcp.save(tensors, storage_writer=writer, no_dist=True)


def load_dcp(path: Path) -> Arrays:
    """Return what a folder of `torch.distributed.checkpoint` holds."""
    tensors = {k: torch.zeros(v.shape) for k, v in state(1).items()}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return {k: v.numpy() for k, v in tensors.items()}


FMKIT, ORBAX, DCP = "a commit of fmkit", "Orbax", "`torch.distributed.checkpoint`"
# Written again over an older one, in the same folder.
OVER = Engine(
    save_dcp, lambda f: max(p.parent for p in f.glob("**/.metadata")), load_dcp
)
ENGINES = {
    FMKIT: Engine(
        lambda f, n: write_commit(f / f"commit-{n:08}.npz", META, state(n)),
        lambda f: list_commits(f)[-1],
        lambda path: read_commit(path).arrays,
    ),
    ORBAX: Engine(
        lambda f, n: orbax.save_checkpointables(f / str(n), {"pytree": state(n)}),
        lambda f: f / max(name for name in os.listdir(f) if name.isdigit()),
        load_orbax,
    ),
    DCP: OVER._replace(save=lambda f, n: save_dcp(f / str(n), n)),
}


class Watch:
    """Copies a folder before each call that changes it, and notes the calls."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.calls: list[tuple[str, str]] = []
        self._lock, self._copying = threading.RLock(), False

    def before(self, call: str, path: str) -> None:
        """Hear of a call before it is made."""
        with self._lock:  # threads that are about to change something wait here
            if self._copying or not path.startswith(str(self.folder)):
                return
            self._copying = True
            with contextlib.suppress(shutil.Error):  # what C++ removes meanwhile
                shutil.copytree(self.folder, self.copies / str(len(self.calls)))
            self.calls.append((call, path))
            self._copying = False


watch: Watch | None = None
_fsync = os.fsync


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if watch is not None and event in CALLS:
        # Of a rename, the name that appears.
        watch.before(event, str(arguments[event == "os.rename"]))


def _flush(file: Any) -> None:
    number = file if isinstance(file, int) else file.fileno()
    if watch is not None:
        watch.before("fsync", os.readlink(f"/proc/self/fd/{number}"))
    _fsync(number)


def killed(engine: Engine, root: Path) -> tuple[Counter[str], bool]:
    """Save 2 after 1; return what each instant leaves, and if the rename is flushed."""
    global watch
    folder, copies = root / "saved", root / "copies"
    folder.mkdir()
    engine.save(folder, 1)
    watch = Watch(folder, copies)
    engine.save(folder, 2)
    calls, watch = watch.calls, None
    found: Counter[str] = Counter()
    for copy in [*copies.iterdir(), folder]:
        try:
            found[which(engine.load(engine.newest(copy)))] += 1
        except REFUSED:
            found["none"] += 1
    last = max(i for i, (call, _) in enumerate(calls) if call == "os.rename")
    return found, ("fsync", os.path.dirname(calls[last][1])) in calls[last:]


def flipped(engine: Engine, root: Path) -> int:
    """Return how many of FLIPS flipped bits are loaded as if nothing had happened."""
    engine.save(root, 1)
    path = max(root.rglob("*"), key=lambda each: each.is_file() * each.stat().st_size)
    whole, rng, unnoticed = path.read_bytes(), random.Random(1), 0
    for _ in range(FLIPS):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(*REFUSED):
            unnoticed += which(engine.load(engine.newest(root))) != "1"
    return unnoticed


class Executes:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def executed(engine: Engine, root: Path) -> list[str]:
    """Return the files of a checkpoint whose content can execute when it is loaded."""
    folder, proof = root / "saved", root / "executed"
    folder.mkdir()
    engine.save(folder, 1)
    found = []
    for path in [each for each in folder.rglob("*") if each.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Executes(proof)))
        with contextlib.suppress(*REFUSED):
            engine.load(engine.newest(folder))
        path.write_bytes(whole)
        if proof.exists():
            proof.unlink()
            found.append(path.name)
    return found


# Another number of devices or processes


def commit_elsewhere(folder: Path) -> bool:
    """Write an array in the parts of two processes; read it in one."""
    directory, array = CommitDirectory(folder), state(1)["a"]
    whole = {"a": {"dtype": array.dtype.name, "shape": list(array.shape)}}
    for process in (1, 0):
        part = array[40 * process :][:40]
        box = ((40 * process, 40 * process + 40), (0, 80))
        piece = Piece("a", box, False, part.nbytes, lambda part=part: part)
        place = directory.place(1, process, 2, "0" * 8)
        shared = Shared(place, META, {}, [piece], whole)
        directory.write_part(shared)
    directory.write_list(shared, shared.parts() or [])
    return np.array_equal(read_commit(list_commits(folder)[-1]).arrays["a"], array)


def orbax_elsewhere(folder: Path) -> bool:
    """Write an array from four devices; read it on two, cut along the other axis."""
    array = state(1)["a"]

    def place(count: int, *axes: str | None) -> NamedSharding:
        mesh = Mesh(np.array(jax.devices()[:count]), ("m",))
        return NamedSharding(mesh, PartitionSpec(*axes))

    cut = jax.device_put(array, place(4, "m"))
    orbax.save_checkpointables(folder / "1", {"pytree": {"a": cut}})
    other = place(2, None, "m")
    like = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=other)
    found = load_orbax(folder / "1", {"a": like})["a"]
    return found.sharding == other and np.array_equal(found, array)


def dcp_elsewhere(folder: Path) -> bool:
    """Write an array from two processes; read it in one."""
    command = [sys.executable, __file__, str(folder)]
    parts = [subprocess.Popen([*command, rank]) for rank in "01"]
    if [part.wait(timeout=300) for part in parts] != [0, 0]:
        return False
    found = {"a": torch.zeros(80, 80)}
    dcp.load(found, checkpoint_id=folder / "1", no_dist=True)
    return np.array_equal(found["a"], state(1)["a"])


def dcp_part(folder: Path, rank: int) -> None:
    """Be one of the two processes."""
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    whole = torch.from_numpy(state(1)["a"])
    tensor = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])
    dcp.save({"a": tensor}, checkpoint_id=folder / "1")
    distributed.destroy_process_group()


ELSEWHERE = {FMKIT: commit_elsewhere, ORBAX: orbax_elsewhere, DCP: dcp_elsewhere}

# The table


def verdicts(name: str, new: Callable[[], Path]) -> tuple[list[str], str]:
    """Try one engine; return its cells, and the counts that they rest on."""
    engine = ENGINES[name]
    left, flushed = killed(engine, new())
    over = killed(OVER, new())[0] if name == DCP else Counter[str]()
    silent, executing = flipped(engine, new()), executed(engine, new())
    pickles = "its list of parts is a pickle"
    cells = [
        of_kills(left, over),
        "yes, flushed to the disk"
        if flushed
        else "not promised: the rename is not flushed",
        "no" if silent else "yes",
        f"no: {pickles if executing == ['.metadata'] else executing}"
        if executing
        else "yes",
        "yes" if ELSEWHERE[name](new()) else "no",
    ]
    return cells, (
        f"instants {dict(left)}, over an older one {dict(over)}; {silent} of {FLIPS} "
        f"flipped bits not noticed; executing: {executing}"
    )


def of_kills(left: Counter[str], over: Counter[str]) -> str:
    """Return the first cell, from which checkpoint was read after each instant."""
    if not set(left) <= {"1", "2"}:
        return "no"
    if set(over) <= {"1", "2"}:
        return "yes, one rename"
    mixed = "old and new can mix unnoticed" if over["neither"] else "there can be none"
    return f"in a new folder; written again over an older one, {mixed}"


PROMISES = (
    "a kill leaves a whole checkpoint",
    "so does a power cut",
    "a flipped bit in the numbers is found",
    "nothing that is read can execute",
    "another number of devices or processes",
)


def main() -> None:
    """Try every engine; print the table, and what it rests on."""
    logging.disable()
    warnings.simplefilter("ignore")  # of what the damaged ones make engines say
    os.fsync = _flush
    sys.addaudithook(_audit)
    with tempfile.TemporaryDirectory() as root:
        tried = {
            name: verdicts(name, lambda: Path(tempfile.mkdtemp(dir=root)))
            for name in ENGINES
        }
    print(f"| promise | {' | '.join(tried)} |")
    print("|---" * (len(tried) + 1) + "|")
    for place, promise in enumerate(PROMISES):
        cells = [cells[place] for cells, _ in tried.values()]
        print(f"| {promise} | {' | '.join(cells)} |")
    print()
    for name, (_, facts) in tried.items():
        print(f"{name}: {facts}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        dcp_part(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
