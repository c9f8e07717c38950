"""Tier 5: artifacts for a GPU, whose attention stays whole, as fused kernels take it; those for a processor go by blocks of rows."""

import pytest
from artifacts import BOUNDED, check_same, manifest, once, write_bounded

import lightvlm_fx as lightvlm


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_graphs_for_a_gpu_answer_as_the_compiled_model(provider, shelf, bounded, tiny):
    folder = once(shelf, f"provider-{provider}", lambda folder: write_bounded(folder, provider=provider))
    assert (manifest(bounded)["provider"], manifest(folder)["provider"]) == ("cpu", provider)
    for_processor, for_gpu = (manifest(f)["buckets"][0]["stages"]["prefill"]["operators"] for f in (bounded, folder))
    assert for_processor != for_gpu
    verdict = lightvlm.verify(folder)
    assert (verdict.exit_code, verdict.lint, verdict.skipped) == (0, [], [])
    fast = lightvlm.compile(tiny.model, BOUNDED, backend="eager")
    for text, seed in ((9, 11), (20, 5)):
        check_same(fast, lightvlm.load(folder), tiny.inputs(text=(text,), images=(1,), seed=seed), 24)
