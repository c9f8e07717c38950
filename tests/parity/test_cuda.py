"""On a CUDA device: inductor's answers are the eager backend's, there and on the CPU, and one graph serves every length."""

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.exporters.torch_compile import compiled_graphs
from lightvlm_fx.schedule import Schedule

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CASES = {
    "cuts": ("llava", Schedule.preset("lightvlm", keep=0.4, layers=(1, 2))),
    "M-RoPE": ("qwen2_5_vl", Schedule.preset("lightvlm", keep=0.4, layers=(1, 2))),
    "a bounded cache": ("llava", Schedule.preset("h2o", capacity=24, recent=4)),
    "cuts and a bound": ("llava", Schedule.preset("lightvlm", keep=0.5, layers=(1,), capacity=40)),
    "masks": ("gemma3", Schedule.preset("fastv", layer=1)),
    "the tower's attention": ("llava", Schedule.preset("sparsevila")),
    "adaptive budgets": ("llava", Schedule.preset("aircache")),
}


def answer(model, inputs):
    return model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True)


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_eager_backend(case):
    family, schedule = CASES[case]
    tiny, on_cpu = zoo.build(family, layers=3), lightvlm.compile(zoo.build(family, layers=3).model, schedule, backend="eager")
    model = tiny.model.cuda()
    fast, eager = (lightvlm.compile(model, schedule, backend=backend) for backend in ("inductor", "eager"))
    before = compiled_graphs()
    for text in (9, 14, 23):
        inputs = tiny.inputs(text=(text,), images=(1,))
        there = {name: x.cuda() for name, x in inputs.items()}
        got, expected = answer(fast, there), answer(eager, there)
        assert got.sequences.equal(expected.sequences)
        for x, y in zip(got.logits, expected.logits, strict=True):
            assert (x - y).abs().max() <= 1e-4 * y.abs().max()
        assert expected.sequences.cpu().equal(answer(on_cpu, inputs).sequences)
    assert compiled_graphs() == before + 2 + len(fast.lightvlm.report.vision) <= before + 3  # of pictures, of the prompt, of a step
