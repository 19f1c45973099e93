"""A real Jupyter kernel, for the tests of what happens in a notebook."""

import os
import tempfile
import time
from dataclasses import dataclass, field

import keras
from fresh_process import SOURCE
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager


@dataclass
class Cell:
    """What one run of a cell gave.

    Attributes:
        texts: What it printed, message by message.
        error: The name of the exception that ended it, or `None`.
        traceback: What the notebook shows of the exception.
    """

    texts: list[str] = field(default_factory=list)
    error: str | None = None
    traceback: str = ""

    @property
    def text(self):
        return "".join(self.texts)

    def last_line(self):
        """Return what it printed last; a cell that failed has none."""
        assert self.error is None, self.traceback
        return self.text.splitlines()[-1]


class Kernel:
    """A kernel of this Python and this backend, whose files are in `folder`."""

    def __init__(self, folder):
        # Sockets that no other test's kernel can have; their paths must be short.
        self.sockets = tempfile.TemporaryDirectory()
        self.manager = KernelManager(
            # No directories: the kernel of this Python, whatever else is installed.
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",
            ip=f"{self.sockets.name}/kernel",
        )
        path = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {
            "KERAS_BACKEND": keras.backend.backend(),
            "PYTHONPATH": os.pathsep.join(path),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        }
        self.manager.start_kernel(
            env=os.environ | settings,
            cwd=str(folder),
            extra_arguments=["--HistoryManager.enabled=False"],
        )
        self.client = self.manager.client()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(timeout=60)
        except RuntimeError:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        self.sockets.cleanup()

    def start(self, code):
        """Begin to run a cell; return its number for `messages`."""
        # An error must not take the next cell with it.
        return self.client.execute(code, stop_on_error=False)

    def messages(self, number):
        """Yield what a cell publishes, until it ends."""
        while True:
            message = self.client.get_iopub_msg(timeout=200)
            if message["parent_header"].get("msg_id") != number:
                continue
            yield message
            if message["content"].get("execution_state") == "idle":
                return

    def run(self, code, at=None, act=None):
        """Run a cell to its end; call `act()` once it has printed `at`."""
        cell = Cell()
        for message in self.messages(self.start(code)):
            content = message["content"]
            if message["msg_type"] == "stream":
                cell.texts.append(content["text"])
                if act is not None and at in cell.text:
                    act()
                    act = None
            elif message["msg_type"] == "error":
                cell.error = content["ename"]
                cell.traceback = "\n".join(content["traceback"])
        return cell

    def kill_at(self, code, at, after):
        """Run a cell; kill the kernel's process once it printed `at`, with a file."""
        printed = ""
        for message in self.messages(self.start(code)):
            printed += message["content"].get("text", "")
            if at in printed:
                end = time.monotonic() + 120
                while not after.exists():
                    assert time.monotonic() < end, f"{after} was never written"
                    time.sleep(0.05)
                self.manager.shutdown_kernel(now=True)
                return
        raise AssertionError(f"the cell never printed {at!r}: {printed}")

    def interrupt(self):
        """Do what the stop button of a notebook does."""
        self.manager.interrupt_kernel()
