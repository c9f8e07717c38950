"""`python -m tests.fuzz.forgeries --count 1000`: forged artifacts, each loaded, asked and verified in a child process with a time limit.

The last line counts: clear (answered as the untouched artifact, or one error of ours that names the file), wrong, crash, hang.
"""

import argparse
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

WAIT = 30  # seconds for one forgery
NEW = 4  # tokens of an answer
MEMORY = 6 << 30  # bytes of address space of a child


def child(source, first, count):
    """Judge forgeries number `first` to `count`, a line each."""
    import numpy as np

    import lightvlm_fx as lightvlm
    from tests.artifact.forging import Forger, judge

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # ONNX Runtime prints there when a provider fails
    inputs = {name: np.load(source / "samples" / f"0.inputs.{name}.npy") for name in ("input_ids", "attention_mask", "pixel_values")}
    truth = lightvlm.load(source).generate(**inputs, max_new_tokens=NEW, do_sample=False).tolist()
    for number in range(first, count):
        with tempfile.TemporaryDirectory() as spare:
            home = Path(spare) / "forged"
            what = Forger(source, random.Random(number))(home)
            try:
                found = judge(home, inputs, truth, NEW)
            except Exception:  # what is not ours is what is looked for
                found = "crash: " + traceback.format_exc().strip().splitlines()[-1]
        print(f"{number} {what} | {found}".replace("\n", " ").encode("ascii", "backslashreplace").decode(), file=told, flush=True)


def run(source, count):
    """Counts of outcomes, over as many children as it takes."""
    counts, first = dict.fromkeys(("clear", "wrong", "crash", "hang"), 0), 0
    while first < count:
        command = [sys.executable, "-m", "tests.fuzz.forgeries", "--child", str(source), "--first", str(first), "--count", str(count)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        buffer = b""
        while first < count:
            ready, _, _ = select.select([process.stdout], [], [], WAIT if first else 4 * WAIT)  # the first also imports
            more = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                kind = "crash" if ready else "hang"
                counts[kind] += 1
                print(f"{first} {kind}: the child {'ended with ' + str(process.wait()) if ready else 'said nothing'}", flush=True)
                first += 1
                break
            *lines, buffer = (buffer + more).split(b"\n")
            for line in lines:
                found = line.decode().rpartition("| ")[2].partition(":")[0]
                counts[found] += 1
                first += 1
                if found != "clear":
                    print(line.decode(), flush=True)
        process.kill()
        process.wait()
    return counts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--child", type=Path)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.first, given.count)
        return
    from tests.artifact.artifacts import write_bounded

    home = Path(tempfile.mkdtemp())
    try:
        write_bounded(home / "source")
        counts = run(home / "source", given.count)
    finally:
        shutil.rmtree(home)
    print("forgeries: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    sys.exit(any(counts[kind] for kind in ("wrong", "crash", "hang")))


if __name__ == "__main__":
    main()
