import pytest
import torch

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.passes.attach_cache import AttachCache
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import real_inputs, run


def test_gives_every_span_one_mask_and_every_layer_its_buffers(decode, golden):
    after, _ = Pipeline([AttachCache(layers=(1, 3))]).run(decode)
    assert text(after, "*") == golden


@pytest.mark.parametrize("layers", [(), (1, 2), (0, 3)])
@pytest.mark.parametrize("capacity", [9, 64])
def test_a_step_over_a_cache_is_the_last_row_of_a_prefill(prefill, decode, layers, capacity):
    """Eight tokens in the cache, wherever spans of layers begin, however long the buffers; the ninth as a step."""
    embeds = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    prompt = {"inputs_embeds": embeds, "position_ids": torch.arange(9)[None]}
    whole = run(prefill, [prompt[name] for name in prefill.inputs])
    step, _ = Pipeline([AttachCache(layers=layers)]).run(decode)
    given = {
        "position_ids": torch.tensor([[8]]),
        "inputs_embeds": embeds[:, 8:],
        "query_index": torch.tensor([8]),
    }
    for span in range(len(layers) + 1):
        given[f"slot_{span}"] = torch.tensor([8])
        given[f"position_{span}"] = torch.where(torch.arange(capacity) < 8, torch.arange(capacity), -1)[None]
    for layer in range(4):
        for kind in ("keys", "values"):
            given[f"{kind}_{layer}"] = torch.zeros(1, 2, capacity, 16)
            given[f"{kind}_{layer}"][:, :, :8] = whole[f"{kind}.{layer}"][:, :, :8]
    inputs = [given[name] for name in step.inputs]
    with torch.no_grad():
        (hidden,) = step.graph_module(*inputs)
    torch.testing.assert_close(hidden[:, 0], whole["hidden"][:, 8])
    for layer in range(4):
        for kind in ("keys", "values"):
            torch.testing.assert_close(given[f"{kind}_{layer}"][:, :, :9], whole[f"{kind}.{layer}"])


def test_spans_whose_keys_count_have_sizes(decode, golden):
    after, _ = Pipeline([AttachCache(layers=(1, 3), biased=(2,))]).run(decode)
    assert text(after, "*") == golden


def test_a_key_of_size_n_counts_as_n_keys(decode):
    """A step over five equal tokens in the cache, and over one that stands for them."""
    step, _ = Pipeline([AttachCache(layers=(0,), biased=(1,))]).run(decode)
    given = dict(zip(step.inputs, real_inputs(step), strict=True))
    full, merged = dict(given), dict(given)
    here = torch.arange(128)
    full["position_1"] = torch.where(here < 8, here, -1)[None]
    merged["position_1"] = torch.where(here < 4, here, -1)[None]
    full["size_1"], merged["size_1"] = torch.ones(1, 128), torch.ones(1, 128)
    merged["size_1"][:, 0] = 5
    merged["slot_1"] = torch.tensor([4])
    for name in (n for n in given if n.startswith(("keys", "values"))):
        full[name] = torch.cat([given[name][:, :, :1]] * 4 + [given[name][:, :, :124]], 2)
    hidden = [run(step, [x[name] for name in step.inputs])["hidden"] for x in (full, merged)]
    torch.testing.assert_close(hidden[0], hidden[1])


def test_keeps_the_hidden_state_only(decode):
    after, (step,) = Pipeline([AttachCache(layers=(1,))]).run(decode)
    assert after.facts.outputs == ("hidden",)
    assert step.result.note == "2 spans of layers"
    assert list(run(after, real_inputs(after))) == ["hidden"]


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (4,), (-1, 2)])
def test_refuses_layers_unsorted_repeated_or_beyond(decode, layers):
    with pytest.raises(PreconditionError, match="layers must rise within 0 to 3, got"):
        Pipeline([AttachCache(layers=layers)]).run(decode)


def test_refuses_a_program_without_markers(decode):
    after, _ = Pipeline([AttachCache()]).run(decode)
    with pytest.raises(
        PreconditionError, match=r"expected an attention marker in each of 4 layers, found layers \[\]"
    ):
        Pipeline([AttachCache()]).run(after)


def test_refuses_a_result_with_markers_left(decode):
    with pytest.raises(PostconditionError, match=r"attach-cache: markers left in layers \[0, 1, 2, 3\]"):
        AttachCache().ensures(decode)
