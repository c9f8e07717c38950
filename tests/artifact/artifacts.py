"""What the tests of artifacts share: making one once a run, answering with one, changing one."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.artifact.load import PER_TOKEN
from lightvlm_fx.artifact.placement import left_to_cpu
from lightvlm_fx.releases import release
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer

PARITY = 1e-4  # on logits, of the largest: the same sums on another runtime
BOUNDED = Schedule.preset("lightvlm", keep=0.3, layers=(1,), capacity=20)
LENGTH = 60
CUTS = Schedule.preset("lightvlm", keep=0.5, layers=(1,))
SMALL, LARGE = 0, 1  # buckets of the artifact of two picture sizes
ROOM = 10  # new tokens that its caches hold
WAIT = 600  # seconds for another worker's export


def once(shelf, name, make):
    """The folder `name` of the shelf, by `make(folder)` of whichever worker comes first."""
    shelf.mkdir(parents=True, exist_ok=True)
    folder, note = shelf / name, shelf / f"{name}.done"
    with FileLock(shelf / f"{name}.lock", timeout=WAIT):
        if not note.exists():
            note.write_text("it was cut off")
            try:
                make(folder)
            except Exception as error:
                note.write_text(f"{type(error).__name__}: {error}")
                raise
            note.write_text("")
    assert not note.read_text(), f"{name} could not be exported: {note.read_text()}"
    return folder


def state_of(model):
    """All of a model that an export might change by mistake."""
    configs = [model.config, *(c for c in vars(model.config).values() if hasattr(c, "_attn_implementation"))]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    weights = {name: hashlib.sha256(x.detach().numpy().tobytes()).hexdigest() for name, x in model.state_dict().items()}
    return {
        "weights": weights, "attention": [c._attn_implementation for c in configs], "hooks": hooks, "training": model.training,
        "config": model.config.to_json_string(use_diff=False), "generation": model.generation_config.to_json_string(use_diff=False),
        "own": sorted(vars(model)), "modules": [type(m).__qualname__ for m in model.modules()],
        "gradients": [p.requires_grad for p in model.parameters()],
    }  # fmt: skip


def bounded_model():
    tiny = zoo.build("llava", layers=2)
    tiny.model.generate(**tiny.inputs(), max_new_tokens=1)  # at its first call a model gets hooks of transformers' own
    return tiny


def write_bounded(folder, rows=2, **options):
    """The artifact that most tests read: two rows of one picture, cuts and a cache of 20 entries."""
    tiny = bounded_model()
    example = tiny.inputs(text=(9,) * rows, images=(1,) * rows)
    before = state_of(tiny.model)
    lightvlm.export(tiny.model, BOUNDED, folder, inputs=example, prompt_tokens=LENGTH, **options)
    assert state_of(tiny.model) == before, "the export changed the model"


def with_picture(tiny, height, width):
    """A family of packed patches with pictures of another size."""
    span = zoo.span(height * width // 4, [zoo.BOI], [zoo.EOI])
    recipe = replace(tiny.recipe, span=span, picture=zoo.patches(height, width, 3 * 2 * 8 * 8))
    return replace(tiny, recipe=recipe)


def arrays(inputs):
    return {k: v.numpy() for k, v in inputs.items()}


def split(inputs):
    """input_ids, attention_mask, and the pictures with what says how they lie, as arrays."""
    given = arrays({k: v for k, v in inputs.items() if k not in PER_TOKEN})
    return given.pop("input_ids"), given.pop("attention_mask"), given


def check_same(fast, vlm, inputs, new):
    """The artifact's greedy tokens are the compiled model's, its logits of every step lie within PARITY, and a GPU would run all of it."""
    old = release("transformers") < (5, 23)  # whose SmolVLM chooses patches by a mask, which no GPU kernel does
    for file in vlm.folder.glob("*.onnx"):
        assert (old and file.stem.endswith("vision")) or not [*left_to_cpu(onnx.load(file, load_external_data=False))]
    want = answer(fast, inputs, new)
    got = vlm.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    assert got.tolist() == want.sequences.tolist()

    batch = split(inputs)
    run = vlm.stages(vlm.bucket(*batch, 1)).start(*batch, zoo.PAD)
    tokens, logits = want.sequences[:, -new:].numpy(), []
    for step in range(new):
        logits.append(run.logits.copy())
        if step + 1 < new:
            run.step(tokens[:, step])
    theirs = torch.stack(want.logits).numpy()
    apart = np.abs(np.stack(logits) - theirs).max((1, 2)) / np.abs(theirs).max()
    assert apart.max() <= PARITY, apart


def copied(folder, to):
    return shutil.copytree(folder, to)


def manifest(folder):
    return json.loads((folder / "lightvlm.json").read_text())


def rewrite(folder, change):
    """Change the manifest in place."""
    found = manifest(folder)
    change(found)
    (folder / "lightvlm.json").write_text(json.dumps(found))


def reseal(folder):
    """Hash every file anew, so that what was changed looks like what was exported."""

    def hashes(found):
        for name in found["files"]:
            data = (folder / name).read_bytes()
            found["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    rewrite(folder, hashes)


def contents(folder):
    """Bytes of every file, by path."""
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- an export that is killed, and then one that is not ---------------------------------------------------

KILLS = ("bucket 0: capturing", "bucket 0: writing embed")  # lines of `tell` at which it is killed
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from artifacts import KILLS, write_bounded
from lightvlm_fx.artifact.manifest import differing, read

folder = Path(sys.argv[1])
states = []
for at in KILLS:
    child = os.fork()
    if not child:
        write_bounded(folder, tell=lambda line: line.startswith(at) and os.kill(os.getpid(), signal.SIGKILL))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    beside = [f.name for f in folder.parent.iterdir() if f.name.startswith(".again.partial-")]
    whole = (folder / "old").is_file() and not differing(folder, read(folder))
    states.append({"at": at, "status": os.waitstatus_to_exitcode(status), "whole": whole, "beside": beside})
write_bounded(folder)
folder.with_name("again.json").write_text(json.dumps(states))
"""


def exported_after_kills(shelf, bounded):
    """`bounded` once more, by another process with another hash seed, over an old artifact, after exports that were killed."""

    def make(folder):
        copied(bounded, folder)
        (folder / "old").write_text("here")
        rewrite(folder, lambda found: found["files"].update(old={}))
        reseal(folder)
        seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        here = str(Path(__file__).parent)
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}
        done = subprocess.run([sys.executable, "-c", DRIVER, str(folder)], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return once(shelf, "again", make)


OFFLINE = ("Max retries exceeded", "NewConnectionError", "Temporary failure in name resolution", "No matching distribution found")


def interpreter_with(home, *packages):
    """The interpreter of a new environment in `home` with these packages alone, those named of the versions that are installed here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    wanted = [f"{name}=={version(name)}" if name.isidentifier() else name for name in packages]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", *wanted]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode and any(line in done.stderr for line in OFFLINE):
        pytest.skip(f"pip cannot reach the package registry: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python
