"""On a device that is not there (tests/elsewhere.py): everything is on it, and answers are the processor's. No GPU needed."""

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, elsewhere

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.bench.gpu_parts import FAMILIES, Kit, placement, small
from lightvlm_fx.errors import LightVLMError
from lightvlm_fx.kv import Kv
from lightvlm_fx.ops.bodies import bodies
from lightvlm_fx.presets import PRESETS
from lightvlm_fx.runtime.cache import SlotTable
from lightvlm_fx.schedule import Schedule

BOUNDED = list(small().items())[-1:]
CACHES = {f"when={when}": Schedule(kv=Kv(capacity=24, sinks=2, recent=4, when=when))
          for when in ("prefill", "step", "mask", {"name": "periodic", "every": 2})}  # fmt: skip


def wrong(monkeypatch, family, schedules):
    """What `lightvlm bench gpu` finds wrong of prompts, steps and dialogues under `schedules`, on this device."""
    with elsewhere(monkeypatch):
        found = placement(Kit(device=str(DEVICE), families=(family,)), schedules)
    assert found.wrong or [row[1] for row in found.tables[0].rows] == list(schedules)
    assert all(int(row[2]) > 100 for row in found.tables[0].rows)  # tensors that were looked at
    return found.wrong


def fits(family, schedule):
    """Whether a family takes a schedule at all."""
    tiny = zoo.build(family)
    try:
        lightvlm.compile(tiny.model, schedule, backend="eager").generate(**tiny.inputs(text=(9, 6), images=(1, 1)), max_new_tokens=1)
    except LightVLMError:
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_on_the_device(monkeypatch, family):
    assert wrong(monkeypatch, family, dict(BOUNDED)) == []


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_under_every_preset_and_moment(monkeypatch, family):
    schedules = {name: Schedule.preset(name) for name in PRESETS} | CACHES
    fitting = {name: schedule for name, schedule in schedules.items() if fits(family, schedule)}
    assert len(fitting) > 20
    assert wrong(monkeypatch, family, fitting) == []


def test_a_tensor_made_where_it_should_not_be_is_found(monkeypatch):
    monkeypatch.setattr(SlotTable, "slots", lambda self, n: torch.arange(self.used, self.used + n))
    assert "not on elsewhere:0: step.slot_0" in wrong(monkeypatch, "llava", dict(BOUNDED))[0]


def test_an_operator_that_mixes_devices_is_found(monkeypatch):
    """In its body, which fake tensors do not run."""
    monkeypatch.setitem(bodies(), torch.ops.lightvlm.select_tokens.default, lambda *args, **options: torch.ones(3) + args[0])
    assert "of tensors on ['cpu', 'elsewhere:0']" in wrong(monkeypatch, "llava", dict(BOUNDED))[0]


def test_tensors_of_two_devices_do_not_mix(monkeypatch):
    with elsewhere(monkeypatch):
        x = torch.ones(3, device=DEVICE)
        assert (x + torch.ones(())).tolist() == [2, 2, 2]
        assert isinstance(x[1:], Elsewhere)
        x[1:] += 1
        assert x.cpu().tolist() == [1, 2, 2]
        with pytest.raises(RuntimeError, match=r"aten.add.Tensor of tensors on \['elsewhere:0', 'cpu'\]"):
            x + torch.ones(3)
