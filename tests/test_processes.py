"""What the processes of a job tell each other, with threads in their place."""

import threading

import keras
import numpy as np
import pytest

from fmkit._commits import Commit, Meta, with_part
from fmkit._job import Job, current_job
from fmkit.callbacks._resume._parts import check_agreement, gather_parts

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
    assert "[1] end the training and [0] go on" in str(first)
    assert both(lambda job: check_agreement(job, 4, True)) == [None, None]


def test_the_first_process_keeps_what_differs_in_the_others(tmp_path):
    def work(job):
        meta = Meta(callbacks={"wait": job.index}, epoch=3 + job.index)
        arrays = {
            "variable/0/0": np.arange(4.0),
            "variable/1/0": np.full(2, job.index, "float32"),
            "random/0": np.array([job.index], np.uint64),
        }
        signal = 15 if job.index == 1 else None
        return meta, arrays, gather_parts(job, meta, arrays, signal)

    (meta, arrays, signal), (_, others, signal_there) = both(work)
    # A signal in one process is known to both.
    assert (signal, signal_there) == (15, 15)
    commit = with_part(Commit(tmp_path, meta, arrays), arrays["process/1"])
    assert commit.meta.callbacks == {"wait": 1}
    assert commit.meta.epoch == 3
    for name, array in others.items():
        if not name.startswith("process/"):
            assert commit.arrays[name].tobytes() == array.tobytes()
    # What is common is kept once.
    assert len(arrays["process/1"]) < 2000
    alone = with_part(Commit(tmp_path, Meta(), {}), arrays["process/1"])
    assert sorted(alone.arrays) == ["random/0", "variable/1/0"]
    assert keras.tree.flatten(alone.meta.callbacks) == [1]
