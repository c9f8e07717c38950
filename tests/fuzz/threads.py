"""`python -m tests.fuzz.threads --threads 8 --requests 40`: several threads answer at once, and each answer is compared with one thread's.

Every preset, cold and warm, with the source answering beside; `compile` and `with_schedule` of one model; exports beside all of it. The
last line counts answers: clear (equal), wrong (other tokens or logits, or a source that is not as it was), crash (an error), hang.
"""

import argparse
import faulthandler
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch

from lightvlm_fx.compat import attention_name

WAIT = 600  # seconds for all threads together
SIZES = (((9,), (1,)), ((9, 6), (1, 2)), ((14,), (2,)))  # tokens of text and pictures, of each row
OTHERS = ("lightvlm", "sparsevila", "fastv", "h2o")  # presets of the second family, whose positions have three parts
SHARES = 4  # of the presets: what a process answers at a time
NEAR = 1e-5  # of the largest logit, where an export runs beside: transformers' exporter changes attention kernels for the process


def asked(model, batches, bound=0.0):
    """A question for every batch, with the answer of this thread as what is expected."""
    from lightvlm_fx.support import answer, difference

    def ask(model, batch, expected):
        off = difference(expected, answer(model, batch))
        return "clear" if off <= bound else f"wrong: off by {off:.0e}"

    expected = [answer(model, batch) for batch in batches]
    return [lambda model, batch=batch, one=one: ask(model, batch, one) for batch, one in zip(batches, expected, strict=True)]


def from_each(model, questions, threads, count):
    """For each thread `count` of the questions to `model`, from another one on."""
    return [[partial(ask, model) for ask in islice(cycle(questions), n, n + count)] for n in range(threads)]


def at_once(jobs, wait=WAIT):
    """Run each job, a list of functions that tell what came of them, in a thread of its own; how often what came."""
    found, begin = [], threading.Barrier(len(jobs))

    def run(job):
        begin.wait()
        for step in job:
            try:
                found.append(step())
            except Exception as error:
                found.append(f"crash: {type(error).__name__}: {str(error)[:300]}")

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    end = time.monotonic() + wait
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        faulthandler.dump_traceback(all_threads=True)
        found += ["hang"] * (sum(map(len, jobs)) - len(found))
    return Counter(found)


def state(model):
    """What nobody may change in a source: its configs, modules, hooks and attributes, and what torch and transformers are."""
    modules = {name: (type(module), sorted(vars(module)), len(module._forward_hooks)) for name, module in model.named_modules()}
    towers = [attention_name(module) for module in model.modules() if hasattr(module, "config")]
    functions = (torch.nn.Module.__call__, torch.nn.Module.__getattr__, torch.nn.functional.scaled_dot_product_attention, torch.where)
    process = (*functions, torch.compiler.is_compiling(), torch.backends.mkldnn.enabled)
    return model.config.to_json_string(), modules, towers, process


def export_of(model, schedule, inputs):
    """A job: write an artifact."""
    import lightvlm_fx as lightvlm

    def export():
        with tempfile.TemporaryDirectory() as home:
            lightvlm.export(model, schedule, Path(home) / "artifact", inputs=inputs, new_tokens=3)
        return "clear"

    return [export]


def compiled_anew(model, first, schedule, questions):
    """A job: another compiled model of the same source, by `compile` and by `with_schedule`, and what it answers."""
    import lightvlm_fx as lightvlm

    def made(make, ask):
        return ask(make())

    makes = [partial(lightvlm.compile, model, schedule, backend="eager"), partial(first.lightvlm.with_schedule, schedule)]
    return [partial(made, make, ask) for make in makes for ask in questions]


def told(what, found):
    """Say what was found, and hand it on."""
    print(f"{what}: {', '.join(f'{n} {kind}' for kind, n in found.items())}", flush=True)
    return found


def presets_of(family, names, threads, requests):
    """Compiled models of these presets, cold and warm, the source beside them; `compile`, `with_schedule` and an export at once."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx import zoo

    torch.set_num_threads(1)
    total, tiny = Counter(), zoo.build(family, layers=5)
    batches = [tiny.inputs(text=text, images=images) for text, images in SIZES]
    of_source = asked(tiny.model, batches)
    first = lightvlm.compile(tiny.model, "none", backend="eager")
    questions = {name: asked(first.lightvlm.with_schedule(name), batches) for name in names}
    before = state(tiny.model)
    for name in names:
        fast = lightvlm.compile(tiny.model, name, backend="eager")
        for when in ("cold", "warm"):
            beside = from_each(tiny.model, of_source, 2, requests)
            total += told(f"{family}, {name}, {when}", at_once(from_each(fast, questions[name], threads, requests) + beside))
    jobs = [compiled_anew(tiny.model, first, name, questions[name]) for name in islice(cycle(names), threads)]
    total += told(f"{family}, compile and with_schedule", at_once(jobs + from_each(tiny.model, of_source, 1, requests)))
    near = asked(first.lightvlm.with_schedule("fastv"), batches, NEAR)
    jobs = [export_of(tiny.model, "fastv", batches[0]), compiled_anew(tiny.model, first, "fastv", near),
            *from_each(tiny.model, asked(tiny.model, batches, NEAR), 1, requests)]  # fmt: skip
    total += told(f"{family}, export", at_once(jobs))
    return total + told(f"{family}, the source", Counter(["clear" if state(tiny.model) == before else "wrong: not as it was"]))


def by_inductor(family, threads, requests):
    """Graphs compiled by inductor, which compiles under a lock of its own."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx import zoo

    torch.set_num_threads(1)
    total, tiny = Counter(), zoo.build(family, layers=5)
    batches = [tiny.inputs(text=text, images=images) for text, images in SIZES]
    compiled, fast = asked(lightvlm.compile(tiny.model, "lightvlm"), batches, NEAR), lightvlm.compile(tiny.model, "lightvlm")
    for when in ("cold", "warm"):
        total += told(f"{family}, inductor, {when}", at_once(from_each(fast, compiled, threads, requests)))
    return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--processes", type=int, default=3, help="how many models are asked at a time, each by so many threads")
    given = parser.parse_args()
    from lightvlm_fx.presets import PRESETS

    names, asks = tuple(PRESETS), (given.threads, given.requests)
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(by_inductor, "qwen2_vl", *asks), pool.submit(presets_of, "qwen2_vl", OTHERS, *asks)]
        shares += [pool.submit(presets_of, "llava", names[n::SHARES], *asks) for n in range(SHARES)]
        total = sum((share.result() for share in shares), Counter())
    counts = {kind: sum(n for found, n in total.items() if found.startswith(kind)) for kind in ("clear", "wrong", "crash", "hang")}
    print("threads: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    sys.exit(any(counts[kind] for kind in ("wrong", "crash", "hang")))


if __name__ == "__main__":
    main()
