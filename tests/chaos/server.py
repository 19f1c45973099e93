"""Runs the trainer in forked children, so that a start costs no import.

The server imports Keras and fmkit and computes nothing; each request forks a
child that is a process of its own from there on, and is killed as one. Requests
and answers are lines of JSON on standard input and output.
"""

import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import numpy as np

# Seconds after which a trainer tells in its log where it stands, and ends. A test has
# more, so one trainer that hangs fails one test, not all that follow.
LIMIT = 400


def run(request):
    """Fork a trainer; kill it after `kill_after` seconds, or wait for its end.

    With `detach`, answer at once with its process; `reap` waits for that one's end.
    """
    if request.get("processes", 1) > 1 or request.get("job"):
        return run_job(request)
    started = time.monotonic()
    child = request.get("reap") or fork(request)
    if request.get("detach"):
        return {"process": child}
    deadline = request.get("kill_after")
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if deadline is not None and time.monotonic() - started > deadline:
            os.kill(child, request.get("signal", signal.SIGKILL))
            deadline = None
        time.sleep(0.002)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - started,
        "cpu": usage.ru_utime + usage.ru_stime,
    }


def run_job(request):
    """Fork the processes of one job; when one of them dies, end the others.

    So do the launchers of clusters: a job is whole or not at all.
    """
    started = time.monotonic()
    count = request["processes"]
    ports = [free_port() for _ in range(count)]
    children = {
        fork(
            request
            | request.get("ranks", {}).get(str(rank), {})
            | {
                "rank": rank,
                "port": ports[0],
                "ports": ports,
                "log": f"{request['log']}.{rank}",
            }
        ): rank
        for rank in range(count)
    }
    codes, cpu = {}, 0.0
    ranks = request.get("ranks", {})
    deadlines = {
        child: ranks.get(str(rank), {}).get("kill_after", float("inf"))
        for child, rank in children.items()
    }
    while children:
        for child in children:
            if time.monotonic() - started > deadlines[child]:
                os.kill(child, signal.SIGKILL)
                deadlines[child] = float("inf")
        child, status, usage = os.wait4(-1, os.WNOHANG)
        if not child:
            time.sleep(0.002)
            continue
        cpu += usage.ru_utime + usage.ru_stime
        codes[children.pop(child)] = code = os.waitstatus_to_exitcode(status)
        if code != 0:
            time.sleep(request.get("grace", 0))
            for other in children:
                os.kill(other, signal.SIGKILL)
    return {
        "code": [codes[rank] for rank in range(count)],
        "seconds": time.monotonic() - started,
        "cpu": cpu,
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(request):
    child = os.fork()
    if child == 0:
        become_trainer(request)
    return child


def become_trainer(request):
    code = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=log)
        if "evaluate" in request:
            from fmkit.evaluation.__main__ import main

            code = main(request["evaluate"])
            return
        import trainer

        if request.get("fault"):
            trainer.Faults(request["fault"]).install()
        program = importlib.import_module(request.get("program", "trainer"))
        ends = program.train(request)
        rank = request.get("rank", 0)
        np.savez(Path(request["folder"], f"ends{rank or ''}.npz"), **ends)
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

    threads = sum(
        # Arrow's allocator, which pandas brings, has one that survives a fork.
        task.read_text().strip() != "jemalloc_bg_thd"
        for task in Path("/proc/self/task").glob("*/comm")
    )
    answer({"backend": trainer.BACKEND, "threads": threads})
    for line in sys.stdin:
        answer(run(json.loads(line)))


def answer(reply):
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
