"""`lightvlm bench first`: how long a new process takes to its first answer, with an empty compile cache and with a full one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lightvlm_fx.errors import NotSupported
from lightvlm_fx.schedule import Schedule


@dataclass(frozen=True)
class First:
    """Seconds of one process, from `compile` to its third token; imports and making the model are not among them."""

    answer: float
    again: float  # the same answer once more
    stages: list[dict[str, Any]]  # stage, capture, rewrite, first_run


def measure(shape: str, layers: int | None, schedule: str, text: int, dtype: str, backend: str) -> First:
    """In this process; `schedule` as JSON."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx.bench import prefill as bench

    chosen, kind = bench.shape(shape, layers), getattr(torch, dtype)
    model = bench.build(chosen, "cpu", kind)
    inputs = bench.example(model, chosen, 1, text, "cpu", kind)
    start = time.perf_counter()
    fast = lightvlm.compile(model, Schedule.model_validate_json(schedule), backend=backend)
    seconds = []
    for _ in range(2):
        fast.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    stages = [{"stage": b["stage"], **b["seconds"]} for b in fast.lightvlm.report.data()["buckets"]]
    return First(seconds[0], seconds[1], stages)


def both(**given: Any) -> list[First]:
    """A process with an empty compile cache, and one after it."""
    out = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            done = subprocess.run([sys.executable, "-W", "ignore", "-m", __name__, json.dumps(given)], capture_output=True, text=True,
                                  check=False, env=environment)  # fmt: skip
            if done.returncode:
                raise NotSupported(f"the process that was to be timed ended with {done.returncode}: {done.stderr[-2000:]}")
            out.append(First(**json.loads(done.stdout.splitlines()[-1])))
    return out


if __name__ == "__main__":
    print(json.dumps(asdict(measure(**json.loads(sys.argv[1])))))
