"""`python -m tests.fuzz.kills --count 50`: exports that are killed at any moment, over an artifact that stands there.

After each, the old one or the new one stands there whole, with at most one folder beside it; the next export clears that. The last line
counts: clear, wrong (neither is whole, or more is left), crash (the export failed by itself), hang.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

WAIT = 120  # seconds for one export


def export_again(source, target, version):
    """As an export ends: every file of `source` written aside, `version` in one of them, and exchanged with what is there."""
    from lightvlm_fx.artifact.manifest import MANIFEST
    from lightvlm_fx.exporters.folder import written_aside
    from tests.artifact.artifacts import contents, reseal, rewrite

    files = contents(source)
    with written_aside(target) as aside:
        for name, data in files.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_bytes(data)
        (aside / "config.json").write_text(f'{{"version": {version}}}')
        rewrite(aside, lambda found: found.update(version=version))
        reseal(aside)
        assert (aside / MANIFEST).is_file()


def whole(target, versions):
    """Whether one of `versions` stands there, every file of it."""
    import json

    from lightvlm_fx.artifact.manifest import differing, read

    manifest = read(target)
    version = json.loads((target / "config.json").read_text())["version"]
    return manifest["version"] == version in versions and not differing(target, manifest)


def beside(target):
    return [f.name for f in target.parent.iterdir() if f != target]


def round_of(source, target, number, longest, draw):
    """One kill, and the outcome."""
    child = os.fork()
    if not child:
        try:
            export_again(source, target, number)
            os._exit(0)
        except BaseException:
            os._exit(1)
    time.sleep(draw.random() * longest)
    os.kill(child, signal.SIGKILL)
    end = time.monotonic() + WAIT
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            return "hang"
        time.sleep(0.001)
    if os.waitstatus_to_exitcode(done[1]) == 1:
        return "crash"
    return "clear" if whole(target, (number - 1, number)) and len(beside(target)) <= 1 else "wrong"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50)
    given = parser.parse_args()
    from tests.artifact.artifacts import write_bounded

    counts, draw = dict.fromkeys(("clear", "wrong", "crash", "hang"), 0), random.Random(0)
    with tempfile.TemporaryDirectory() as home:
        source, target = Path(home) / "source", Path(home) / "there" / "target"
        write_bounded(source)
        start = time.monotonic()
        export_again(source, target, 0)
        longest, left = 1.2 * (time.monotonic() - start), 0
        for number in range(1, given.count + 1):
            found = round_of(source, target, number, longest, draw)
            left += bool(beside(target))
            counts[found] += 1
            export_again(source, target, number)  # clears what the killed one left
            if beside(target):
                counts["wrong"] += 1
                print(f"{number}: left {beside(target)}")
        print(f"{left} kills fell into the writing")
    print("kills: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    sys.exit(not left or any(counts[kind] for kind in ("wrong", "crash", "hang")))


if __name__ == "__main__":
    main()
