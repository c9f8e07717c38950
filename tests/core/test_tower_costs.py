"""FLOPs of vision towers are those that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.model.locate import tower_blocks, vision_tower
from lightvlm_fx.model.tower_costs import tower_flops
from lightvlm_fx.schedule import Schedule


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_vl"])
def test_as_torch_counts_them(family):
    """But for the summary token."""
    tiny = zoo.build(family, layers=2)
    vision_tower(tiny.model).set_attn_implementation("eager")  # of fused kernels it counts none
    inputs = tiny.inputs(text=(9,), images=(1,))
    blocks, counted = tower_blocks(vision_tower(tiny.model)), 0
    used = blocks[:1] if family == "llava" else blocks
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tiny.model(**inputs)
    by_module = counter.get_flop_counts()
    names = [name for name, module in tiny.model.named_modules() if any(module is block for block in used)]
    counted = sum(sum(v.values()) for name, v in by_module.items() if name.split(".", 1)[-1] in names or name in names)
    reduced, full = tower_flops(tiny.model, [tiny.visual_tokens], Schedule.preset("none"))
    assert reduced == full
    assert counted == pytest.approx(full, rel=0.08)


def test_cuts_cost_less_from_their_block_on():
    model = zoo.build("paligemma", layers=2).model
    reduced, full = tower_flops(model, [16], Schedule.preset("folder", keep=0.5, tower=True))
    blocks = tower_blocks(vision_tower(model))
    mlp = 2 * sum(p.numel() for name, p in blocks[1].named_parameters() if p.ndim == 2 and "mlp" in name)
    assert full - reduced == 8 * mlp


def test_nothing_is_said_of_towers_that_pool():
    assert tower_flops(zoo.build("internvl", layers=2).model, [16], Schedule.preset("none")) == (0.0, 0.0)


def test_explain_says_what_is_cut_in_the_tower():
    told = lightvlm.explain(zoo.build("llava").model, Schedule.preset("folder", tower=True))
    assert "in block -1 of the vision tower: fold by fold-keys, keep 0.333, proportional attention" in str(told)
    assert told.ideal_from_pixels != told.ideal_speedup
