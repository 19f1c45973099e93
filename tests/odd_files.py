"""What may be found where a regular file is expected."""

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


# By the words with which errors name them.
ODD_FILES = {
    "a named pipe": make_pipe,
    "a folder": make_folder,
    "a symbolic link": make_link,
    "a socket": make_socket,
}
