"""Tier 4: stages as torch.export writes them answer as the compiled model, and so do they compiled by AOTInductor."""

import numpy as np
import pytest
import torch
from artifacts import manifest, write_bounded

NEW = 12


def greedy(stages, given, new):
    """Tokens [B, new] of the stages, each something that is called with its inputs by name."""
    seen = stages["vision"](**given["vision"])
    embedded = stages["embed"](input_ids=given["input_ids"], **seen)
    out = stages["prefill"](input_ids=given["input_ids"], attention_mask=given["attention_mask"], **given["prefill"], **embedded)
    cache, tokens = out["present"], [out["logits"].argmax(-1)]
    for step in range(new - 1):
        out = stages["decode"](input_ids=tokens[-1][:, None], step=torch.tensor([step]), past_key_values=cache)
        cache |= out["present"]
        tokens.append(out["logits"].argmax(-1))
    return torch.stack(tokens, 1)


def sample(folder):
    """The recorded batch, and the compiled model's answer to it."""
    files = manifest(folder)["buckets"][0]["samples"]
    arrays = {name: torch.from_numpy(np.load(folder / file)) for name, file in files.items()}
    given = {}
    for name, x in arrays.items():
        kind, _, name = name.partition(".")
        (given if kind == "inputs" else given.setdefault(kind, {}))[name] = x
    return given, arrays["sequences"][:, given["input_ids"].shape[1] :][:, :NEW]


def files(folder, suffix=".pt2"):
    return {name: folder / stage["file"].replace(".pt2", suffix) for name, stage in manifest(folder)["buckets"][0]["stages"].items()}


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # of torch, in run_decompositions
def test_stages_answer_as_the_compiled_model(tmp_path):
    write_bounded(tmp_path / "out", target="torch-export")
    programs = {name: torch.export.load(file) for name, file in files(tmp_path / "out").items()}
    operators = {str(n.target) for p in programs.values() for n in p.graph.nodes if n.op == "call_function"}
    assert not [name for name in operators if "lightvlm" in name]  # what opens them need not have this package
    core = {str(n.target) for p in programs.values() for n in p.run_decompositions().graph.nodes if n.op == "call_function"}
    assert not [name for name in operators | core if "sort" in name or "empty_permuted" in name]  # ExecuTorch has no kernels of them
    given, expected = sample(tmp_path / "out")
    with torch.no_grad():
        assert greedy({name: p.module() for name, p in programs.items()}, given, NEW).tolist() == expected.tolist()


@pytest.mark.heavy
def test_packages_of_aot_inductor_answer_as_the_compiled_model(tmp_path):
    write_bounded(tmp_path / "out", target="torch-export", aot_inductor=True)
    packages = {name: torch._inductor.aoti_load_package(str(file)) for name, file in files(tmp_path / "out", ".aoti.pt2").items()}
    given, expected = sample(tmp_path / "out")
    assert greedy(packages, given, NEW).tolist() == expected.tolist()
