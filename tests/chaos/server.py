"""Runs the trainer in forked children, so that a start costs no import.

The server imports Keras and fmkit and computes nothing; each request forks a
child that is a process of its own from there on, and is killed as one. Requests
and answers are lines of JSON on standard input and output.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np


def run(request):
    """Fork a trainer; kill it after `kill_after` seconds, or wait for its end.

    With `detach`, answer at once with its process; `reap` waits for that one's end.
    """
    started = time.monotonic()
    child = request.get("reap") or os.fork()
    if child == 0:
        become_trainer(request)
    if request.get("detach"):
        return {"process": child}
    deadline = request.get("kill_after")
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if deadline is not None and time.monotonic() - started > deadline:
            os.kill(child, request.get("signal", signal.SIGKILL))
            deadline = None
        time.sleep(0.002)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - started,
    }


def become_trainer(request):
    code = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if "evaluate" in request:
            from fmkit.evaluation.__main__ import main

            code = main(request["evaluate"])
            return
        import trainer

        if request.get("fault"):
            trainer.Faults(request["fault"]).install()
        ends = trainer.train(request)
        np.savez(Path(request["folder"], "ends.npz"), **ends)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - told in the log, and by the exit code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: the server's own frames are none of the child's business.
        os._exit(code)


def main():
    sys.path.insert(0, str(Path(__file__).parent))
    # Keras loads it for its file functions, on every backend: once, not per child.
    import tensorflow  # noqa: F401
    import trainer

    threads = len(os.listdir("/proc/self/task"))
    answer({"backend": trainer.BACKEND, "threads": threads})
    for line in sys.stdin:
        answer(run(json.loads(line)))


def answer(reply):
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
