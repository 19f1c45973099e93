"""Programs in a fresh process, for what must hold without this one's state."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras

import fmkit

SOURCE = Path(fmkit.__file__).parents[1]


def run_python(code, *arguments, **environment):
    """Run a program in a fresh process on this backend, and return what it printed."""
    settings = {
        "KERAS_BACKEND": keras.backend.backend(),
        # A Keras that stands on this process's path is that of the fresh one too.
        "PYTHONPATH": os.pathsep.join(
            [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
