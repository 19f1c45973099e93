"""What the processes of a job tell each other, with threads in their place."""

import contextlib
import errno
import io
import os
import shutil
import threading

import ml_dtypes
import numpy as np
import pytest
from odd_files import damaged

from fmkit._commits import (
    CommitDirectory,
    DamagedCommitError,
    Meta,
    Shared,
    _sharded,
    list_commits,
    read_commit,
    write_commit,
)
from fmkit._commits._archive import write_archive
from fmkit._commits._meta import OF_EACH_PROCESS
from fmkit._commits._sharded import PartFile
from fmkit._job import Job, current_job
from fmkit.callbacks._resume._background import JobWriter
from fmkit.callbacks._resume._differences import (
    as_in_this_job,
    check_job,
    check_program,
)
from fmkit.callbacks._resume._parts import check_agreement, deal
from fmkit.callbacks._resume._shards import Layout, Shard

pytestmark = pytest.mark.backend("torch")


class Meeting(Job):
    """A job whose processes are threads that meet at a barrier."""

    def exchange_bytes(self, data):
        TOLD[self.index] = data
        BARRIER.wait(5)
        told = list(TOLD)
        BARRIER.wait(5)
        return told


TOLD = [None, None]
BARRIER = threading.Barrier(2)


def both(work):
    """Run `work(job)` as process 0 and as process 1; return what each ends with."""
    ends = [None, None]

    def run(index):
        try:
            ends[index] = work(Meeting(index, 2))
        except Exception as error:  # noqa: BLE001 - returned
            ends[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_one_process_is_a_job_of_its_own():
    job = current_job()
    assert (job.index, job.count) == (0, 1)
    assert job.exchange({"a": [1, None]}) == [{"a": [1, None]}]
    assert job.together(lambda: 3) == 3


def test_each_process_learns_what_the_others_say():
    assert both(lambda job: job.exchange(job.index)) == [[0, 1], [0, 1]]


def test_an_error_in_one_process_is_an_error_in_all():
    def work(job):
        if job.index == 1:
            raise ValueError("the disk is full")
        return "done"

    first, second = both(lambda job: job.together(lambda: work(job)))
    assert isinstance(first, RuntimeError)
    assert "Process 1 of the 2" in str(first)
    assert "ValueError: the disk is full" in str(first)
    assert isinstance(second, ValueError)
    assert both(lambda job: job.together(lambda: job.index)) == [0, 1]


def test_processes_that_end_apart_are_refused():
    first, second = both(lambda job: check_agreement(job, 4, job.index == 1))
    assert str(first) == str(second)
    assert "After epoch 5" in str(first)
    assert "[1] end the training and [0] continue" in str(first)
    assert both(lambda job: check_agreement(job, 4, True)) == [None, None]


def layouts(job, values):
    """How these values lie in processes that hold all of each, as on PyTorch."""
    everyone = tuple(range(job.count))

    def layout(value):
        box = tuple((0, size) for size in value.shape)
        return Layout(value.dtype, value.shape, [Shard(box, everyone, lambda: value)])

    return {name: layout(value) for name, value in values.items()}


LARGE = np.arange(2**16, dtype=np.float32).reshape(2**8, 2**8)


def commit_of(job, directory, score=None, size=1.0):
    """Commit what differs between the processes, and what does not."""
    values = {
        "variable/0/0": LARGE * np.float32(size),
        "variable/1/0": np.full(2, job.index, "float32"),
        "variable/2/0": np.array(7, np.int64),
        "variable/3/0": np.zeros((0, 3), ml_dtypes.bfloat16),
    }
    dealt = deal(job, layouts(job, values), tell=directory.next)
    meta = Meta(callbacks={"wait": job.index}, epoch=3, score=score)
    arrays = {"random/0": np.array([job.index], np.uint64)}
    place = directory.place(dealt.told[0], job.index, job.count, "0" * 8)
    return Shared(place, meta, arrays, dealt.pieces, dealt.whole)


def commit(job, path, **options):
    directory = CommitDirectory(path)
    if job.index == 0:
        directory.acquire()
    writer = JobWriter(job, directory, background=True)
    for number in range(options.pop("times", 1)):
        writer.wait()
        writer.start_job([commit_of(job, directory, size=1.0 + number, **options)])
    writer.wait()
    directory.release()


def test_each_process_writes_its_part_and_the_list_comes_last(tmp_path):
    assert both(lambda job: commit(job, tmp_path)) == [None, None]
    sizes = {name: os.stat(tmp_path / name).st_size for name in os.listdir(tmp_path)}
    parts = sorted(name for name in sizes if name.startswith("part-"))
    assert sorted(sizes) == ["commit-00000001.npz", "lock", *parts]
    assert [name[:20] for name in parts] == [
        "part-00000001-0-of-2",
        "part-00000001-1-of-2",
    ]
    # What is common is written once, each half of it by one of them.
    assert all(
        LARGE.nbytes / 2 < sizes[name] < LARGE.nbytes / 2 + 4000 for name in parts
    )
    assert sizes["commit-00000001.npz"] < 4000
    for process, wait in enumerate((0, 1, 0)):  # there is no third
        found = read_commit(list_commits(tmp_path)[0], process)
        assert (found.meta.epoch, found.meta.callbacks) == (3, {"wait": wait})
        assert found.arrays["random/0"].tolist() == [wait]
        assert np.array(found.arrays["variable/0/0"]).tobytes() == LARGE.tobytes()
        assert np.asarray(found.arrays["variable/1/0"]).tolist() == [wait, wait]
        assert found.arrays["variable/2/0"].tobytes() == np.int64(7).tobytes()
        assert found.arrays["variable/3/0"].read().shape == (0, 3)
        assert found.arrays["variable/3/0"].dtype == ml_dtypes.bfloat16
    with np.load(tmp_path / parts[0]) as opened:  # and nothing is pickled
        assert all(opened[name] is not None for name in opened)


def test_only_what_is_asked_for_is_read_of_an_array(tmp_path, monkeypatch):
    both(lambda job: commit(job, tmp_path))
    array = read_commit(list_commits(tmp_path)[0]).arrays["variable/0/0"]
    index = (slice(100, 140), slice(3, 250))
    read = []
    one = PartFile.read_into
    monkeypatch.setattr(
        PartFile,
        "read_into",
        lambda self, at, data: (read.append(len(data)), one(self, at, data))[1],
    )
    for block, largest in ((2**24, 2**16), (2**12, 2**12), (16, 16)):
        monkeypatch.setattr(_sharded, "BLOCK", block)
        monkeypatch.setattr(_sharded, "_SHORT", block)
        read.clear()
        assert array.read(index).tobytes() == LARGE[index].tobytes()
        assert max(read) <= largest
        assert sum(read) <= 40 * 2**10  # of those rows, and of no others


def test_old_commits_go_with_their_parts(tmp_path):
    both(lambda job: commit(job, tmp_path, times=4))
    names = sorted(os.listdir(tmp_path))
    assert names[:2] == ["commit-00000003.npz", "commit-00000004.npz"]
    assert [name[:20] for name in names[3:]] == [
        *("part-00000003-0-of-2", "part-00000003-1-of-2"),
        *("part-00000004-0-of-2", "part-00000004-1-of-2"),
    ]


def test_parts_without_a_list_are_removed_by_the_next_run(tmp_path):
    both(lambda job: commit(job, tmp_path, times=2))
    list_commits(tmp_path)[-1].unlink()
    (tmp_path / ".part-00000002-0-of-2-00000000-.npz.77-00ff.tmp").touch()
    (tmp_path / "part-of-something-else.npz").touch()
    with contextlib.closing(Held(tmp_path)):
        names = sorted(os.listdir(tmp_path))
    assert [name[:20] for name in names] == [
        "commit-00000001.npz",
        "lock",
        *("part-00000001-0-of-2", "part-00000001-1-of-2", "part-of-something-el"),
    ]


class Held(CommitDirectory):
    """A directory that is held."""

    def __init__(self, path):
        super().__init__(path)
        self.acquire()

    close = CommitDirectory.release


def test_a_missing_or_damaged_part_is_named_and_the_commit_before_used(tmp_path):
    both(lambda job: commit(job, tmp_path / "whole", times=2))
    name = sorted(os.listdir(tmp_path / "whole"))[-1]
    content = (tmp_path / "whole" / name).read_bytes()
    rng = np.random.RandomState(0)
    contents = [None, *damaged(content, rng, cuts=3, flips=10)]
    for number, each in enumerate(contents):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / name).unlink()
        if each is not None:
            (folder / name).write_bytes(each)
        with pytest.raises(DamagedCommitError, match=name):
            read_commit(list_commits(folder)[-1])
        with pytest.warns(UserWarning, match=name):
            found = CommitDirectory(folder).newest()
        assert found.number == 1
        assert found.arrays["variable/0/0"].tobytes() == LARGE.tobytes()
    # Negative control: the same, undamaged.
    found = CommitDirectory(tmp_path / "whole").newest()
    assert found.number == 2
    assert found.arrays["variable/0/0"].tobytes() == (2 * LARGE).tobytes()


def test_each_process_checks_its_share_of_the_parts(tmp_path):
    both(lambda job: commit(job, tmp_path))
    (path,) = list_commits(tmp_path)
    last = tmp_path / sorted(os.listdir(tmp_path))[-1]
    content = bytearray(last.read_bytes())
    content[LARGE.nbytes // 4] ^= 1
    last.write_bytes(content)
    assert read_commit(path, share=(0, 2)).number == 1
    with pytest.raises(DamagedCommitError, match=last.name):
        read_commit(path, share=(1, 2))


def test_a_part_that_others_have_not_all_written_is_no_commit(tmp_path):
    def work(job):
        directory = CommitDirectory(tmp_path)
        if job.index == 0:
            directory.acquire()
        writer = JobWriter(job, directory, background=True)
        shared = commit_of(job, directory)
        if job.index == 0:
            writer.start_job([shared])
            writer.finish()  # as when the other one never comes
            directory.release()

    assert both(work) == [None, None]
    assert list_commits(tmp_path) == []


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_in_one_process_is_an_error_in_all(tmp_path, failing, monkeypatch):
    both(lambda job: commit(job, tmp_path))
    before = sorted(os.listdir(tmp_path))
    write = CommitDirectory.write_part

    def write_part(self, shared):
        if shared.place.process == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, shared)

    monkeypatch.setattr(CommitDirectory, "write_part", write_part)
    ends = both(lambda job: commit(job, tmp_path))
    assert isinstance(ends[failing], OSError)
    assert isinstance(ends[1 - failing], RuntimeError)
    assert f"Process {failing} of the 2" in str(ends[1 - failing])
    assert "No space left" in str(ends[1 - failing])
    # What came of it is gone; what was there is there.
    assert sorted(os.listdir(tmp_path)) == before


def test_what_a_process_wrote_of_an_earlier_job_does_not_count(tmp_path):
    both(lambda job: commit(job, tmp_path))
    stale = next(tmp_path.glob("part-00000001-1-*"))
    other = tmp_path / stale.name.replace("-00000000-", "-00000001-").replace(
        "00000001-1-of", "00000002-1-of"
    )
    shutil.copy(stale, other)

    def work(job):
        directory = CommitDirectory(tmp_path)
        place = directory.place(2, job.index, job.count, "0" * 8)
        shared = Shared(place, Meta(), {}, [], {})
        if job.index == 0:
            shared.write_part()
            return shared.parts()
        return None

    assert both(work) == [None, None]


def test_a_commit_that_process_0_has_gathered_can_be_read(tmp_path):
    own = {name: getattr(Meta(callbacks={"wait": 1}), name) for name in OF_EACH_PROCESS}
    packed = io.BytesIO()
    header = {"format": "fmkit commit", "version": 1, **own}
    write_archive(packed, header, {"random/0": np.array([1])}.items())
    arrays = {
        "variable/0/0": LARGE,
        "random/0": np.array([0]),
        "process/1": np.frombuffer(packed.getvalue(), np.uint8),
    }
    path = tmp_path / "commit-00000001.npz"
    write_commit(path, Meta(epoch=3, callbacks={"wait": 0}), arrays)
    for process, wait in enumerate((0, 1, 0)):
        found = read_commit(path, process)
        assert (found.meta.epoch, found.meta.callbacks) == (3, {"wait": wait})
        assert found.arrays["random/0"].tolist() == [wait]
        assert found.arrays["variable/0/0"].tobytes() == LARGE.tobytes()


DATA = {"batch_size": 4, "shard": [1, 2], "seed": 5}
PROGRAM = {"processes": 2, "data": DATA, "fit": {"validation_data": [DATA, None]}}


def cut_for(index, count, samples=8):
    data = {**DATA, "batch_size": samples // count, "shard": [index, count]}
    return {"processes": count, "data": data, "fit": {"validation_data": [data, None]}}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_same_steps_cut_for_another_number_are_the_same_program(count):
    program = cut_for(0, count)
    assert as_in_this_job(PROGRAM, program) == program
    assert check_program(as_in_this_job(PROGRAM, program), program, "run") == []


def test_other_steps_are_another_program():
    program = cut_for(3, 4, samples=16)
    with pytest.raises(
        ValueError, match=r"(?s)data\.shard.*into 2 shards, and are into 4"
    ):
        check_program(as_in_this_job(PROGRAM, program), program, "run")
    program = cut_for(0, 4)
    program["data"]["seed"] = 6
    with pytest.raises(ValueError, match=r"data\.seed: 5 in the commit, 6 here"):
        check_program(as_in_this_job(PROGRAM, program), program, "run")


def test_what_another_number_of_processes_changes_is_said_or_refused():
    assert check_job((2, None), (2, None), strict=True) is None
    said = check_job(
        (4, "DataParallel(batch 4)"), (2, "DataParallel(batch 2)"), strict=False
    )
    assert "made by 4 processes, and continues in 2 processes" in said
    assert "was DataParallel(batch 4), and is DataParallel(batch 2)" in said
    assert "the last bits" in said
    assert "processes 2 to 3 are left out" in said
    said = check_job((1, None), (4, None), strict=False)
    assert (
        "processes 1 to 3 begin with the generators and callbacks of process 0" in said
    )
    with pytest.raises(ValueError, match="made by 2 processes, and continues in one"):
        check_job((2, None), (1, None), strict=True)
