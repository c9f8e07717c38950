"""On a device that is not there (tests/elsewhere.py): everything is on it, and answers are the processor's. No GPU needed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, elsewhere

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.bench.gpu_parts import FAMILIES, Kit, placement, small
from lightvlm_fx.compat import pytree
from lightvlm_fx.errors import LightVLMError
from lightvlm_fx.exporters.vision import flat
from lightvlm_fx.exporting.bucket import PER_TOKEN, Bucket
from lightvlm_fx.exporting.build import build
from lightvlm_fx.kv import Kv
from lightvlm_fx.ops.bodies import bodies
from lightvlm_fx.presets import PRESETS
from lightvlm_fx.runtime import images
from lightvlm_fx.runtime.cache import SlotTable
from lightvlm_fx.runtime.images import ImageFeatures
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


def tower(monkeypatch, family):
    """Features that the tower's own code makes here, and those that its graph makes on this device."""
    tiny = zoo.build(family)
    pictures = {name: x for name, x in tiny.inputs(text=(9, 6), images=(1, 2)).items() if name not in ("input_ids", *PER_TOKEN)}
    own = flat(tiny.model.model.get_image_features(**pictures, return_dict=True).pooler_output)
    report = SimpleNamespace(warnings=[], vision=[])
    with elsewhere(monkeypatch), torch.no_grad():
        model = copy.deepcopy(tiny.model).to(DEVICE)
        graph = ImageFeatures(model, "model", model.model.get_image_features, report, Schedule.preset("none"), lambda *said: None,
                              backend="eager", options={}, static=False)  # fmt: skip
        found = flat(graph(**{name: x.to(DEVICE) for name, x in pictures.items()}).pooler_output)
    assert (report.warnings, len(report.vision)) == ([], 1)  # it was not the model's own code
    return own, found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_towers_graph_is_on_the_device(monkeypatch, family):
    """Which `backend="eager"` does without."""
    own, found = tower(monkeypatch, family)
    assert isinstance(found, Elsewhere)
    torch.testing.assert_close(found.here, own, atol=1e-4, rtol=1e-4)


def test_what_a_towers_graph_is_fed_with_from_elsewhere_is_found(monkeypatch):
    fed = images.feed
    monkeypatch.setattr(images, "feed", lambda *given: ({name: torch.zeros(x.shape) for name, x in fed(*given)[0].items()}, 9))
    with pytest.raises(RuntimeError, match=r"of tensors on \['cpu', 'elsewhere:0'"):
        tower(monkeypatch, "llava")


def stages(monkeypatch, family, schedule):
    """Outputs of an artifact's stages, made here and on this device, a stage a pair."""
    tiny = zoo.build(family)
    inputs = tiny.inputs(text=(9, 6), images=(1, 1))
    length = inputs["input_ids"].shape[1] + 20
    with elsewhere(monkeypatch):
        given = {name: x.to(DEVICE) for name, x in inputs.items()}
        there = build(copy.deepcopy(tiny.model).to(DEVICE), schedule, given, length, 8, static=True).stages
    here = build(tiny.model, schedule, inputs, length, 8, static=True).stages
    return {name: (pytree.tree_leaves(here[name].outputs), pytree.tree_leaves(there[name].outputs)) for name in here}


@pytest.mark.parametrize("family", ["llava", *(pytest.param(name, marks=pytest.mark.full) for name in ("qwen2_5_vl", "smolvlm"))])
def test_stages_of_an_artifact_are_on_the_device(monkeypatch, family):
    found = stages(monkeypatch, family, Schedule.preset("lightvlm", keep=0.5, capacity=40))
    assert list(found) == ["vision", "embed", "prefill", "decode"]
    for expected, got in found.values():
        assert all(isinstance(x, Elsewhere) for x in got)
        for x, y in zip(expected, got, strict=True):
            torch.testing.assert_close(y.here, x, atol=1e-4, rtol=1e-4)


def test_a_number_that_a_stage_reads_on_the_host_is_found(monkeypatch):
    made = Bucket.picture_tokens
    monkeypatch.setattr(Bucket, "picture_tokens", lambda self, pictures: torch.tensor(made(self, pictures).tolist()))
    with pytest.raises(RuntimeError, match=r"of tensors on .*'cpu'"):
        stages(monkeypatch, "llava", Schedule.preset("lightvlm", keep=0.5))


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
