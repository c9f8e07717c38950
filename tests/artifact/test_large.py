"""Tier 4: weights that no protobuf message can hold."""

import pytest
import torch
from artifacts import CUTS, arrays

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.support import answer

LIMIT = 2**31  # bytes of a protobuf message


@pytest.mark.heavy
def test_weights_above_two_gigabytes(tmp_path):
    tiny = zoo.build("llava", layers=2)
    tiny.model.resize_token_embeddings(LIMIT // (zoo.HIDDEN * 4) + 1000, mean_resizing=False)
    inputs = tiny.inputs(text=(9,))
    made = lightvlm.export(tiny.model, CUTS, tmp_path / "out", inputs=inputs, new_tokens=8)
    assert (made.path / "model.onnx.data").stat().st_size > LIMIT
    assert lightvlm.verify(made.path).exit_code == 0
    with torch.no_grad():
        want = answer(lightvlm.compile(tiny.model, CUTS, backend="eager"), inputs, 4)
    got = made.load().generate(**arrays(inputs), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert got.tolist() == want.sequences.tolist()
