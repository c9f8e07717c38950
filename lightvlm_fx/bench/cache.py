"""`lightvlm bench cache`: what an answer's keys and values take, beside the uncompiled source's, and what stays once it is dropped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lightvlm_fx.bench.memory import EAGER_TO_RETURN, forget_peak, status
from lightvlm_fx.bench.prefill import Shape, build, example
from lightvlm_fx.errors import NotSupported
from lightvlm_fx.schedule import Schedule

SHAPE = Shape("cache", 2048, 16, 16, 16, 512, 1936)  # caches that outweigh everything else: 16 layers x 16 heads x 128
SOURCE = "source"


@dataclass(frozen=True)
class Held:
    """Bytes above those before the prompt: at the peak, while the answer is held, and after it is dropped."""

    name: str
    peak: int
    held: int
    left: int


def measure(name: str, schedule: str | None, text: int, new_tokens: int) -> Held:
    """In this process, float32, eager: a warm-up, then one answer; `schedule` as JSON, None for the uncompiled source."""
    import lightvlm_fx as lightvlm

    model = build(SHAPE, "cpu", torch.float32)
    inputs = example(model, SHAPE, 1, text, "cpu", torch.float32)
    if schedule is not None:
        model = lightvlm.compile(model, Schedule.model_validate_json(schedule), backend="eager")

    def answer() -> Any:
        return model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True)

    answer()
    before = forget_peak()
    held = answer()
    peak = status("VmHWM") - before
    resident = forget_peak() - before
    del held
    return Held(name, peak, resident, forget_peak() - before)


def apart(name: str, schedule: Schedule | None, text: int = 64, new_tokens: int = 8) -> Held:
    """`measure` in a process of its own, whose allocator returns at once what is free. Raises NotSupported where it fails."""
    given = {"name": name, "schedule": schedule and schedule.model_dump_json(), "text": text, "new_tokens": new_tokens}
    command = [sys.executable, "-W", "ignore", "-m", __name__, json.dumps(given)]
    done = subprocess.run(command, env=os.environ | EAGER_TO_RETURN, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotSupported(f"the process that was to be measured ended with {done.returncode}: {done.stderr[-2000:]}")
    return Held(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(**json.loads(sys.argv[1])))))
