"""Run a program without the lines that other libraries print as they start.

    python scripts/quiet.py examples/quickstart.py

TensorFlow 2.21 prints these while it is loaded, whatever its settings, since it has not
read them yet: the lines on CUDA wherever there is no GPU. Only lines that are exactly
these are left out of the standard error. Everything else that is printed there is shown
at once, and the program's exit status is this one's.
"""

import re
import signal
import subprocess
import sys

CHATTER = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\) is called are written "
    r"to STDERR"
    # Where the processor has the instructions that oneDNN is quick with (AVX-512).
    r"|I0000 .* port\.cc:\d+\] oneDNN custom operations are on\. You may see slightly "
    r"different numerical results due to floating-point round-off errors from "
    r"different computation orders\. To turn them off, set the environment variable "
    r"`TF_ENABLE_ONEDNN_OPTS=0`\."
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
