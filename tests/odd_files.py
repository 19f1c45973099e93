"""What may be found where a regular file is expected, or in one."""

import os
import socket


def make_pipe(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_link(path):
    """Link to a file that must keep its content."""
    target = path.with_name("target")
    target.write_text("precious")
    path.symlink_to(target)


def make_dangling_link(path):
    path.symlink_to(path.with_name("nowhere"))


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def damaged(whole, rng, *, cuts, flips):
    """Copies of a file's bytes, some cut off anywhere, some with one bit flipped."""
    found = [whole[:end] for end in rng.randint(0, len(whole), cuts)]
    for place in rng.randint(0, len(whole), flips):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randint(8)
        found.append(bytes(flipped))
    return found


# By the words with which errors name them.
ODD_FILES = {
    "a named pipe": make_pipe,
    "a folder": make_folder,
    "a symbolic link": make_link,
    "a socket": make_socket,
}
