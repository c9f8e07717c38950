"""`outlier_share`: PruMerge's count of each picture, measured on some, against NumPy on the tower's own attention maps.
`layer_contributions`: ShortV's figure of each layer, against hooks on the source.
"""

import numpy as np
import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import InputError, NotSupported
from lightvlm_fx.model.locate import vision_tower, visual_ids
from lightvlm_fx.schedule import Schedule


@pytest.fixture(scope="module")
def tiny():
    """A model whose tower looks at few patches: of random weights, all are alike."""
    made = zoo.build("llava", layers=2)
    for weight in (block.self_attn.q_proj.weight for block in vision_tower(made.model).encoder.layers):
        weight.data *= 40
    return made


def counted(model, pixels):
    """Of each picture the outliers among the patches that the summary token attends to, mean over heads."""
    tower = vision_tower(model)
    old = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = tower(pixels, output_attentions=True).attentions[-1][:, :, 0, 1:].mean(1).numpy()
    finally:
        tower.set_attn_implementation(old)
    low, high = np.percentile(maps, 25, axis=1), np.percentile(maps, 75, axis=1)
    return [int((row > b + 1.5 * (b - a)).sum()) for row, a, b in zip(maps, low, high, strict=True)]


def test_it_is_the_mean_of_the_papers_counts(tiny):
    batches = [tiny.inputs(text=(9,), images=(n,), seed=n) for n in (1, 2, 3)]
    counts = [n for batch in batches for n in counted(tiny.model, batch["pixel_values"])]
    assert len(set(counts)) > 1
    share = lightvlm.outlier_share(tiny.model, *batches)
    assert share == pytest.approx(np.mean(counts) / tiny.visual_tokens)
    assert Schedule.preset("prumerge", keep=share).budgets(tiny.visual_tokens) == [max(1, round(share * tiny.visual_tokens))]


def test_pictures_of_several_sizes_count_equally():
    tiny = zoo.build("qwen2_vl", layers=2)
    batches = [tiny.inputs(text=(9, 9), images=(2, 1), seed=seed) for seed in range(4)]
    each = []
    for batch in batches:
        first = 0
        for i, patches in enumerate(batch["image_grid_thw"].prod(1).tolist()):
            one = {"pixel_values": batch["pixel_values"][first : first + patches], "image_grid_thw": batch["image_grid_thw"][i : i + 1]}
            first += patches
            try:
                each.append(lightvlm.outlier_share(tiny.model, one))
            except InputError:
                each.append(0.0)
    assert len(set(each)) > 1
    assert lightvlm.outlier_share(tiny.model, *batches) == pytest.approx(np.mean(each))


def test_a_compiled_model_counts_as_its_source(tiny):
    inputs = tiny.inputs(text=(9,), images=(3,))
    fast = lightvlm.compile(tiny.model, "prumerge", backend="eager")
    assert lightvlm.outlier_share(fast, inputs) == lightvlm.outlier_share(tiny.model, inputs)


@pytest.mark.parametrize(("batch", "message"), [
    ({"input_ids": torch.tensor([[1]])}, "a batch holds no pixel_values: input_ids; give what the processor returns for pictures"),
    ("blank", "no outliers in 2 pictures, and a count of none leaves nothing; give more, or choose keep yourself"),
])  # fmt: skip
def test_refuses_what_tells_no_count(tiny, batch, message, monkeypatch):
    if batch == "blank":
        monkeypatch.setattr(vision_tower(tiny.model).encoder.layers[-1].self_attn.q_proj.weight, "data", torch.zeros(32, 32))
        batch = tiny.inputs(text=(9,), images=(2,))
    with pytest.raises(InputError, match=message):
        lightvlm.outlier_share(tiny.model, batch)


def test_refuses_a_tower_whose_patches_are_not_its_tokens():
    tiny = zoo.build("internvl", layers=2)
    with pytest.raises(NotSupported, match="a score by tower attention needs to know which patches"):
        lightvlm.outlier_share(tiny.model, tiny.inputs(text=(9,), images=(1,)))


# --- layer contributions ---------------------------------------------------------------------------------


def predicted(model, inputs, frozen=None):
    """Probabilities [B, V] of the next token; the visual tokens leave layer `frozen` as they came."""
    visual = torch.isin(inputs["input_ids"], torch.tensor(visual_ids(model))).unsqueeze(-1)

    def put_back(module, args, kwargs, output):
        came = args[0] if args else kwargs["hidden_states"]
        whole = isinstance(output, tuple)
        left = torch.where(visual, came, output[0] if whole else output)
        return (left, *output[1:]) if whole else left

    hook = None if frozen is None else model.get_decoder().layers[frozen].register_forward_hook(put_back, with_kwargs=True)
    with torch.no_grad():
        out = model(**inputs).logits[:, -1].double().softmax(-1)
    if hook:
        hook.remove()
    return out.numpy()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_layer_contributes_what_freezing_it_changes(family):
    """The mean over all prompts, whatever batch they came in; what the last layer does to visual tokens nobody reads."""
    tiny = zoo.build(family, layers=4)
    for i, layer in enumerate(tiny.model.get_decoder().layers):
        layer.mlp.down_proj.weight.data *= (40, 1, 10, 40)[i]
        layer.self_attn.v_proj.weight.data *= 10
    batches = [tiny.inputs(text=(9, 7), images=(1, 2)), tiny.inputs(text=(8,), images=(1,), seed=3)]
    found = lightvlm.layer_contributions(tiny.model, *batches)
    full = np.concatenate([predicted(tiny.model, batch) for batch in batches])
    for layer, nats in enumerate(found):
        frozen = np.concatenate([predicted(tiny.model, batch, layer) for batch in batches])
        assert nats == pytest.approx((frozen * np.log(frozen / full)).sum(1).mean(), rel=1e-3, abs=1e-10)
    assert found[0] > 10 * max(found[1:])
    assert min(found[:3]) > 1e-4
    assert found[3] < 1e-10


def test_a_compiled_model_contributes_as_its_source(tiny):
    inputs = tiny.inputs(text=(9,), images=(1,))
    fast = lightvlm.compile(tiny.model, Schedule.preset("fastv", layer=1), backend="eager")
    assert lightvlm.layer_contributions(fast, inputs) == lightvlm.layer_contributions(tiny.model, inputs)


def test_contributions_need_prompts_with_pictures(tiny):
    with pytest.raises(InputError, match="no prompts to measure with; give what the processor returns"):
        lightvlm.layer_contributions(tiny.model)
    with pytest.raises(InputError, match="a prompt has no picture, so freezing visual tokens changes nothing of it"):
        lightvlm.layer_contributions(tiny.model, tiny.inputs(text=(9, 5), images=(1, 0)))
