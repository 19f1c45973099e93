"""Run a program without the lines that other libraries print as they start.

    python scripts/quiet.py examples/quickstart.py

TensorFlow 2.21 prints these while it is loaded, before it reads TF_CPP_MIN_LOG_LEVEL,
on every machine without a GPU; no setting of its own turns them off. Only lines that
are exactly these are left out of the standard error. Everything else that is printed
there is shown at once, and the program's exit status is this one's.
"""

import re
import signal
import subprocess
import sys

CHATTER = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\) is called are written "
    r"to STDERR"
    r"|I0000 .* cudart_stub\.cc:\d+\] Could not find cuda drivers on your machine, GPU "
    r"will not be used\."
    # An error to TensorFlow: 303 says that there is no driver of NVIDIA's. With one
    # that is broken the number is another.
    r"|E0000 .* cuda_platform\.cc:\d+\] failed call to cuInit: INTERNAL: CUDA error: "
    r"Failed call to cuInit: UNKNOWN ERROR \(303\)"
)


def main(*program: str) -> int:
    """Run a Python program; return its exit status."""
    command = [sys.executable, *program]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as running:
        # The program has it too, and what it then prints is to be seen.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for line in running.stderr:
            if not CHATTER.fullmatch(line.decode(errors="replace").strip()):
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
    return running.returncode if running.returncode >= 0 else 128 - running.returncode


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
