"""Regular files only, whatever is in their place; and files that are written whole."""

import os
import subprocess
import sys
import textwrap

import pytest
from odd_files import ODD_FILES, make_dangling_link, make_link

from fmkit._files import InUseError, Lock, open_regular, whole_file

pytestmark = pytest.mark.backend("torch")


ODD = ODD_FILES | {"symbolic link": make_dangling_link}

FLAGS = {
    "read": os.O_RDONLY,
    "append": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "truncate": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize(("word", "make"), ODD.items(), ids=ODD)
def test_refuses_what_is_no_regular_file_at_once_and_names_it(
    tmp_path, monkeypatch, word, make, flags
):
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    path = tmp_path / "odd"
    make(path.relative_to(tmp_path))
    with pytest.raises(OSError, match=f"odd must be a regular file, but.*{word}"):
        open_regular(path, flags)


def test_a_link_leaves_its_target_as_it_is(tmp_path):
    make_link(tmp_path / "odd")
    with pytest.raises(OSError, match="symbolic link"):
        open_regular(tmp_path / "odd", os.O_WRONLY | os.O_TRUNC)
    assert (tmp_path / "target").read_bytes() == b"precious"
    # Negative control: `open` goes through the link.
    with open(tmp_path / "odd", "wb"):
        pass
    assert (tmp_path / "target").read_bytes() == b""


def test_a_device_is_refused():
    with pytest.raises(OSError, match="a character device was found"):
        open_regular(os.devnull, os.O_WRONLY)


def test_a_link_put_there_between_the_two_looks_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "odd"
    path.write_bytes(b"")
    regular = os.lstat(path)
    path.unlink()
    make_link(path)
    monkeypatch.setattr(os, "lstat", lambda _: regular)
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(path, os.O_WRONLY | os.O_TRUNC)
    monkeypatch.undo()
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_opens_and_makes_regular_files(tmp_path):
    path = tmp_path / "file"
    with os.fdopen(open_regular(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
        file.write(b"1")
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        assert file.read() == b"1"


def test_says_what_os_open_says_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing", os.O_RDONLY)


def test_a_folder_above_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"1")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    descriptor = open_regular(tmp_path / "linked" / "file", os.O_RDONLY)
    assert os.read(descriptor, 2) == b"1"
    os.close(descriptor)


# Whole files

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from fmkit._files import whole_file

    path = Path(sys.argv[1])

    def killed(call, late):
        original = getattr(os, call)
        def last(*arguments, **keywords):
            if late:
                original(*arguments, **keywords)
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(os, call, last)

    def write(how, call, late):
        path.write_bytes(b"old")
        child = os.fork()
        if not child:
            killed(call, late)
            with how(path) as file:
                file.write(b"ne")
                file.flush()
                if how is not whole_file:
                    os.fsync(file.fileno())
                file.write(b"w")
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return path.read_bytes().decode()

    for call in ("chmod", "fsync", "replace", "open"):
        print(call, *(write(whole_file, call, late) for late in (False, True)))
    # Negative control: written in place, the old is gone before the new is there.
    print("in place", write(lambda path: open(path, "wb"), "fsync", False))
"""


@pytest.mark.long
def test_a_kill_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), tmp_path / "f"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "chmod old old",
        "fsync old old",
        "replace old new",
        "open new new",  # the folder is synced last
        "in place ne",
    ]


def test_whole_files_of_one_name_can_be_written_at_once(tmp_path):
    # As two threads do; so a name that a killed process left behind is no obstacle.
    path = tmp_path / "file"
    with whole_file(path) as first, whole_file(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_an_exception_leaves_the_file_and_its_permissions_as_they_were(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with pytest.raises(TypeError, match="bytes"), whole_file(path) as file:
        file.write("not bytes")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["file"])
    with whole_file(path) as file:
        file.write(b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)


def is_locked(path):
    """Whether another process is refused the lock."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fmkit._files import InUseError, Lock\n"
        "try:\n    Lock(Path(sys.argv[1]), 'fit').acquire()\n"
        "except InUseError:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout == "refused\n"


@pytest.mark.long
def test_a_lock_released_while_the_next_takes_over_is_locked_anew(tmp_path):
    # Python may collect the broken run, and so release its lock, at any instant.
    path = tmp_path / "lock"

    def ends():
        first.release()
        return False

    first, second = Lock(path, "fit", is_live=ends), Lock(path, "fit")
    first.acquire()
    second.acquire()
    assert is_locked(path)
    with pytest.raises(InUseError, match="very process"):
        Lock(path, "fit").acquire()
    second.release()
    assert not is_locked(path)  # negative control


def test_a_lock_released_within_its_release_is_closed_once(tmp_path, monkeypatch):
    lock, closed, close = Lock(tmp_path / "lock", "fit"), [], os.close

    def close_and_release(descriptor):
        closed.append(descriptor)
        lock.release()
        close(descriptor)

    lock.acquire()
    monkeypatch.setattr(os, "close", close_and_release)
    lock.release()
    assert len(closed) == 1
