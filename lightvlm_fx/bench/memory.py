"""`lightvlm bench memory`: what the prefill of one long video takes, beside the same model unreduced.

The model is the zoo's tiny Qwen2.5-VL, whose weights and layers weigh nothing beside what grows with the square of the
tokens. Each figure comes from a process of its own: its peak over what was resident before, and the time.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightvlm_fx.schedule import Schedule

FRAME = 8, 9  # visual tokens of a frame, height and width
EAGER_TO_RETURN = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**16))  # an allocator that keeps nothing free
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Taken:
    """One prefill: bytes at its peak above those before it, and seconds."""

    tokens: int
    schedule: str
    peak: int
    seconds: float


def video(tokens: int, rows: int = 1, text: int = 8) -> dict[str, Tensor]:
    """A prompt of the zoo's Qwen2.5-VL: `tokens` visual tokens of one video (whole frames) and some text."""
    from lightvlm_fx import zoo

    height, width = FRAME
    frames, rest = divmod(tokens, height * width)
    if rest or not frames:
        raise ValueError(f"tokens must be a multiple of {height * width}, got {tokens}")
    before = [zoo.FIRST_TEXT] * 2 + [zoo.BOI]
    row = [*before, *[zoo.VIDEO] * tokens, zoo.EOI, *range(zoo.FIRST_TEXT, zoo.FIRST_TEXT + text)]
    ids = torch.tensor([row] * rows)
    pixels = torch.randn(rows * frames * height * width * 4, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[frames, 2 * height, 2 * width]] * rows),
        "mm_token_type_ids": 2 * (ids == zoo.VIDEO).long(),
    }  # fmt: skip


def measure(tokens: int, schedule: Schedule, backend: str = "eager", repeats: int = 1) -> Taken:
    """In this process: a warm-up, then `repeats` prefills; the largest peak and the median time of them."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx import zoo

    fast = lightvlm.compile(zoo.build("qwen2_5_vl").model, schedule, backend=backend)
    inputs = video(tokens)
    peaks, seconds = [], []
    with torch.inference_mode():
        for turn in range(repeats + 1):
            before, start = forget_peak(), time.perf_counter()
            fast(**inputs, use_cache=True, logits_to_keep=1)
            seconds.append(time.perf_counter() - start)
            peaks.append(status("VmHWM") - before if turn else 0)
    return Taken(tokens, schedule.name, max(peaks), statistics.median(seconds[1:]))


def forget_peak() -> int:
    """Bytes of this process that are resident; its peak counts from here. Linux alone can tell."""
    gc.collect()
    PEAK.write_text("5", encoding="ascii")
    return status("VmRSS")


def status(what: str) -> int:
    """Bytes that /proc says of this process: VmRSS (resident), VmHWM (at the peak)."""
    line = next(x for x in STATUS.read_text(encoding="ascii").splitlines() if x.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024


def apart(tokens: int, schedule: Schedule, backend: str = "eager", repeats: int = 1) -> Taken:
    """`measure` in processes of their own: the peak where the allocator returns at once what is free, the time where it does as ever."""
    given = json.dumps({"tokens": tokens, "schedule": schedule.model_dump_json(), "backend": backend, "repeats": repeats})
    found = []
    for options in (EAGER_TO_RETURN, {}):
        command = [sys.executable, "-m", __name__, given]
        done = subprocess.run(command, env=os.environ | options, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{schedule.name}, {tokens} tokens: {done.stderr[-2000:]}")
        found.append(Taken(**json.loads(done.stdout.splitlines()[-1])))
    return replace(found[0], seconds=found[1].seconds)


def _main(given: dict[str, Any]) -> None:
    given["schedule"] = Schedule.model_validate_json(given["schedule"])
    print(json.dumps(asdict(measure(**given))))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
