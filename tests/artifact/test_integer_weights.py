"""Weights of 8 and 4 bits on ONNX Runtime: the answers of a model whose weights were rounded the same way, from smaller files."""

import copy
import re

import numpy as np
import onnx
import pytest
import torch
from artifacts import CUTS, ROOM, once, split
from torch import nn
from torch.nn import functional as F

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import InputError
from lightvlm_fx.support import answer

BLOCK = 32
BITS = {"int8": 8, "int4": 4}
ACTIVATIONS = 0.1  # on logits, of the largest: these are rounded to 8 bits a block as well, of a model whose logits are small


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("qwen2_5_vl", layers=2)


@pytest.fixture(scope="module")
def made(shelf, tiny):
    def export(dtype):
        inputs = tiny.inputs(text=(9,), images=(1,))
        return once(shelf, f"weights-{dtype}", lambda folder: lightvlm.export(tiny.model, CUTS, folder, inputs=inputs, new_tokens=ROOM,
                                                                              dtype=dtype))  # fmt: skip

    return export


def rounded(weight, bits):
    """Each row in blocks, whose value of the largest size becomes the least code."""
    k = weight.shape[1]
    blocks = F.pad(weight, (0, -k % BLOCK)).unflatten(1, (-1, BLOCK))
    step = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / -(2 ** (bits - 1))
    codes = (blocks / torch.where(step == 0, 1, step)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes * step).flatten(1)[:, :k]


def with_rounded_weights(model, bits):
    other = copy.deepcopy(model)
    layers = [m for m in other.get_decoder().modules() if isinstance(m, nn.Linear)]
    for layer in [*layers, other.get_output_embeddings()]:
        layer.weight = nn.Parameter(rounded(layer.weight.detach(), bits), requires_grad=False)
    return other


@pytest.mark.parametrize("dtype", BITS)
def test_answers_as_a_model_of_rounded_weights(tiny, made, dtype):
    assert lightvlm.verify(made(dtype)).exit_code == 0
    inputs = tiny.inputs(text=(11,), images=(1,), seed=3)
    want = answer(lightvlm.compile(with_rounded_weights(tiny.model, BITS[dtype]), CUTS, backend="eager"), inputs, 1).logits[0].numpy()
    vlm = lightvlm.load(made(dtype))
    got = vlm.stages().start(*split(inputs), zoo.PAD).logits
    assert np.abs(got - want).max() <= ACTIVATIONS * np.abs(want).max()


def test_files_shrink_with_the_bits(made):
    size = {}
    for dtype, bits in BITS.items():
        for stage in ("prefill", "decode"):
            graph = onnx.load(str(made(dtype) / f"{stage}.onnx"), load_external_data=False).graph
            said = [{a.name: a.i for a in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"]
            assert {(n["bits"], n["block_size"], n["accuracy_level"]) for n in said} == {(bits, BLOCK, 4)}
            assert len(said) == 7 * 2 + 1  # linear layers of two layers, and the head
        size[dtype] = (made(dtype) / "model.onnx.data").stat().st_size
    assert size["int4"] < size["int8"]


@pytest.mark.parametrize(("target", "dtype", "instead"), [
    ("tensorrt", "int4", "export with dtype='int8'"),
    ("torch-export", "int4", "quantise those"),
    ("torch-export", "int8", "quantise those"),
])  # fmt: skip
def test_says_which_targets_have_none(tiny, tmp_path, target, dtype, instead):
    with pytest.raises(InputError, match=re.escape(f"target {target!r} has no {dtype}") + f".*{instead}"):
        lightvlm.export(tiny.model, CUTS, tmp_path / "out", target=target, dtype=dtype, inputs=tiny.inputs(), new_tokens=ROOM)
