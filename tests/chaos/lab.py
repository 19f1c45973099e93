"""Runs trainers, kills them, and compares how they end: used by the test and by hand.

    KERAS_BACKEND=jax python tests/chaos/lab.py --kills 200

kills a training 200 times and stops at the first difference of one bit.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from networks import NETWORKS
from sources import SOURCES

COMMITTING = ("every", "background")
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)
# Their model is another one (`tests/test_exact_resume_data.py` has it).
NOT_KILLED = {"dicts"}
SERVER = Path(__file__).parent / "server.py"


class Lab:
    """Runs trainers through the fork server, and knows how they end unkilled."""

    def __init__(self, folder):
        self.folder = folder
        self.number = 0
        self.references = {}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        greeting = json.loads(self.process.stdout.readline())
        self.backend = greeting["backend"]
        # One thread: a fork of more would not be sound.
        assert greeting["threads"] == 1, greeting

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def new_folder(self):
        self.number += 1
        folder = self.folder / f"run{self.number}"
        folder.mkdir()
        return folder

    def run(self, folder, **request):
        """One process from start to death: its exit code, negative for a signal."""
        request |= {"folder": str(folder), "log": str(folder / "log.txt")}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self, folder, **request):
        """Run, and tell whether the process was killed before its end."""
        code = self.run(folder, **request)["code"]
        assert code in (0, -signal.SIGKILL), self.log(folder)
        return code != 0

    def ends(self, folder, **options):
        """Run to the end; return what it ends with."""
        code = self.run(folder, **options)["code"]
        assert code == 0, self.log(folder)
        with np.load(folder / "ends.npz") as ends:
            return dict(ends)

    def kill_one(self, folder, rng, seconds, processes, rank=None, **options):
        """Kill one process of a job at random; tell whether it died before its end.

        Args:
            seconds: How long the job would take.
            rank: Which one; `None` for any.
        """
        way, any_rank = rng.randrange(3), rng.randrange(processes)
        rank = any_rank if rank is None else rank
        own = [
            {"kill_after": seconds * rng.uniform(0.4, 1.0)},
            {"die_after": rng.randrange(1, 20)},
            {"fault": rng.randrange(1, 150)},
        ][way]
        # What the others do when one is lost is a part of it.
        options["grace"] = rng.choice([0.0, 0.3])
        ranks = {str(rank): own}
        codes = self.run(folder, processes=processes, ranks=ranks, **options)["code"]
        assert codes == [0] * processes or codes[rank] == -signal.SIGKILL, self.log(
            folder
        )
        return codes != [0] * processes

    def job_ends(self, folder, processes, **options):
        """Run a job to its end; return what each of its processes ends with."""
        code = self.run(folder, processes=processes, **options)["code"]
        assert code == [0] * processes, self.log(folder)
        return self.ends_of_job(folder, processes)

    def ends_of_job(self, folder, processes):
        """Return what each process of a job has ended with."""
        found = []
        for rank in range(processes):
            with np.load(folder / f"ends{rank or ''}.npz") as ends:
                found.append(dict(ends))
        return found

    def log(self, folder):
        return "\n".join(
            path.read_text()[-4000:] for path in sorted(folder.glob("log.txt*"))
        )

    def reference(self, **options):
        """What the never-killed run ends with, and how long it takes."""
        # How often it commits must not matter: one reference for all. Only snapshots of
        # averages are taken with commits.
        free = set(COMMITTING)
        if options.get("averages") == "all rules":
            free.remove("every")
        options = {k: v for k, v in options.items() if k not in free}
        key = json.dumps(options, sort_keys=True)
        if key not in self.references:
            folder = self.new_folder()
            done = self.run(folder, **{"every": 10**9} | options)
            assert done["code"] == 0, self.log(folder)
            seconds = done["seconds"]
            with np.load(folder / "ends.npz") as ends:
                self.references[key] = dict(ends), seconds
        return self.references[key]

    def differences(self, folder, **options):
        """Names of the arrays that differ in any bit from the never-killed run."""
        expected, _ = self.reference(**options)
        ends = self.ends(folder, **options)
        assert ends.keys() == expected.keys()
        return [
            name
            for name, value in expected.items()
            if value.tobytes() != ends[name].tobytes()
            or value.dtype != ends[name].dtype
        ]


def kill_at_random(lab, rng, folder, **options):
    """At a random moment, at a random step, or between two system calls."""
    _, seconds = lab.reference(**options)
    way = rng.randrange(3)
    if way == 0:
        # Not during start-up, where nothing can be lost.
        options["kill_after"] = seconds * rng.uniform(0.4, 1.0)
    elif way == 1:
        options["die_after"] = rng.randrange(1, 20)
    else:
        options["fault"] = rng.randrange(1, 400)
    return lab.kill(folder, **options)


def kill_and_compare(lab, kills, rng, **options):
    """Kill a training `kills` times; return what differs at the end, run by run.

    A kill that comes after the end of a run is made up for by another run.
    """
    different = []
    while kills > 0:
        folder = lab.new_folder()
        for _ in range(min(kills, 8)):
            if not kill_at_random(lab, rng, folder, **options):
                break
            kills -= 1
        different.append(lab.differences(folder, **options))
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--networks", nargs="*", help="names in networks.py, or plain")
    parser.add_argument("--data", nargs="*", help="names in sources.py; none for all")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    rng, done, table = random.Random(seed), 0, {}
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        print(f"backend {lab.backend}, --seed {seed}")  # noqa: T201
        names = ["plain", *(each.__name__ for each in NETWORKS[lab.backend])]
        if arguments.data is not None:
            names = arguments.data or sorted(set(SOURCES) - NOT_KILLED)
        for name in itertools.cycle(arguments.networks or names):
            if done >= arguments.kills:
                break
            options = {
                "every": rng.choice([1, 2, 3, 5, 7]),
                "background": rng.random() < 0.5,
            }
            if arguments.data is not None:
                options["data"] = name
            elif name != "plain":
                options["network"] = name
            elif lab.backend != "torch":
                options["steps_per_execution"] = rng.choice([1, 1, 5])
            kills = min(8, arguments.kills - done)
            if arguments.data is not None:  # each kind as often
                kills = min(kills, -(-arguments.kills // len(names)))
            different = kill_and_compare(lab, kills, rng, **options)
            done += kills
            before = table.get(name, (0, 0, 0))
            now = kills, len(different), sum(map(bool, different))
            table[name] = tuple(map(sum, zip(before, now, strict=True)))
            print(  # noqa: T201
                f"{done} kills, {options}: differences {different}", flush=True
            )
            if any(different):
                sys.exit(1)
        lab.close()
    print(f"\n| {lab.backend} | kills | runs | runs that ended otherwise |")  # noqa: T201
    print("|---|---|---|---|")  # noqa: T201
    for name, row in table.items():
        print(f"| {name} | {' | '.join(map(str, row))} |")  # noqa: T201


if __name__ == "__main__":
    main()
