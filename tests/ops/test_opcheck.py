"""torch.library's own check of every op: schemas tell the truth, fake results look like real ones."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightvlm_fx.ops.bodies import bodies

OPS = torch.ops.lightvlm
SEGMENT = torch.tensor([[-2, -1, 0, 0, 0, 1, 1, -1], [-1, 0, 0, 0, 0, 0, -1, -1]])
BUDGET = torch.tensor([[2, 2, 2, 2, 2, 1, 1, 2], [3] * 8])
K = 6


def arguments():
    """Arguments for every op, by name; two rows, two pictures in the first."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 8, 4, generator=draw) for heads in (4, 2, 2))
    hidden, score, size = (
        torch.randn(2, 8, 5, generator=draw),
        torch.rand(2, 8, generator=draw),
        torch.ones(2, 8),
    )
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    index, left, rank = OPS.select_tokens(score, SEGMENT, BUDGET, K)
    went = OPS.nearest_survivor(hidden, SEGMENT, index, left)
    small = mask[:, :, :K, :K]
    per_head = torch.rand(2, 2, 8, generator=draw)
    entries, _ = OPS.keep_entries(per_head, SEGMENT, torch.tensor([5, 3]), K, 1, 1, False, False, 0.0)
    return {
        "attention": [(q, k, v, None, 0.5, 0, 0, 0.0), (q, k, v, mask, 0.5, 0, 0, 3.0), (q, k, v, None, 0.5, 0, 0, 0.0, size * 2)],
        "compact_index": [(SEGMENT, left)],
        "keep_entries": [
            (per_head, SEGMENT, torch.tensor([5, 3]), K, 1, 1, False, True, 0.0),
            (per_head[:, :1], SEGMENT, torch.tensor([2, 1]), K, 0, 0, True, False, 0.0),
            (per_head, SEGMENT, torch.tensor([6, 4]), K, 1, 1, False, False, 0.4),
        ],
        "guard_visual": [(per_head, SEGMENT)],
        "kv_score_marks": [(q, k, SEGMENT, 0.5, 3), (q.half(), k.half(), SEGMENT, 0.5, 99)],
        "kv_score_rows": [
            (q, k, SEGMENT, None, 0.5, "attention", 1, 1),
            (q.half(), k.half(), SEGMENT, mask, 0.5, "window", 3, 5),
            (q, k, SEGMENT, None, 0.5, "text", 1, 1),
        ],
        "kv_budgets": [(torch.rand(2, 3, 1, generator=draw), torch.full((2, 3), 4), torch.full((2, 3), 6), "density", 1)],
        "kv_score_density": [(v, SEGMENT, False), (v.half(), SEGMENT, True)],
        "kv_score_elite": [(q, k, SEGMENT, 0.5, 0.9)],
        "kv_score_question": [(q, k, SEGMENT, 0.5, True), (q[:, :, :3], k, SEGMENT, 0.5, False)],
        "kv_spread": [(q, k, SEGMENT, None, 0.5, "density"), (q, k, SEGMENT, mask, 0.5, "entropy")],
        "mask_out": [(small, left), (torch.where(small, 0.0, -1e9)[:1], left)],
        "merge_entries": [
            (k, v, None, None, SEGMENT, entries, entries),
            (k.half(), v.half(), size, per_head[:, :1], SEGMENT, entries[:, :1], entries[:, :1]),
        ],
        "merge_tokens": [
            (hidden, size, index, went),
            (hidden.bfloat16(), size, index, went),
        ],
        "nearest_survivor": [(hidden, SEGMENT, index, left), (hidden.bfloat16(), SEGMENT, index, left)],
        "merge_values": [(k, v, SEGMENT, index[:, None], index[:, None])],
        "recover_tokens": [(hidden, size, score, rank, BUDGET, index, SEGMENT, left, 0.5, 2)],
        "score_density": [(hidden, SEGMENT, 0.5), (hidden.bfloat16(), SEGMENT, 1.0)],
        "score_last_query": [(q, k, SEGMENT, 0.5, False), (q.half(), k.half(), SEGMENT, 0.5, True)],
        "score_peak": [(score, hidden, SEGMENT, 0.25), (score, hidden.bfloat16(), SEGMENT, 0.5)],
        "score_random": [(SEGMENT, 3)],
        "score_received": [(q, k, SEGMENT, None, 0.5), (q, k, SEGMENT, mask, 0.5)],
        "score_text_mean": [(q, k, SEGMENT, None, 0.5), (q, k, SEGMENT, mask, 0.5)],
        "score_uniform": [(SEGMENT, BUDGET)],
        "select_tokens": [(score, SEGMENT, BUDGET, K)],
        "take_entries": [(k, entries), (k.half(), entries[:, :1]), (per_head, entries)],
        "take_tokens": [
            (hidden, index, 0, 1),
            (hidden[:1], index, 0, 1),
            (hidden[0], index, -1, 0),
            (mask, index, 0, 3),
        ],
    }


CASES = [(name, i) for name, cases in arguments().items() for i in range(len(cases))]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_schema_and_fake_agree_with_the_op(name, case):
    torch.library.opcheck(
        getattr(OPS, name).default, arguments()[name][case], test_utils=("test_schema", "test_faketensor")
    )


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default_dtype(request):
    """Set when called, and put back."""
    before = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(request.param)
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_default_dtype_changes_nothing(name, case, default_dtype):
    """`torch.set_default_dtype(torch.bfloat16)` is a common way to load a model."""
    op, given = getattr(OPS, name).default, arguments()[name][case]
    before, traced = (tree_leaves(f(*given)) for f in (op, bodies()[op]))
    default_dtype()
    for now, wanted in ((op(*given), before), (bodies()[op](*given), traced)):
        torch.testing.assert_close(tree_leaves(now), wanted, rtol=0, atol=0, equal_nan=True)


def test_every_registered_op_has_arguments_here():
    registered = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("lightvlm::")
    }
    assert registered == set(arguments())


@pytest.mark.parametrize(("name", "case"), [c for c in CASES if c[0] != "kv_score_question"])
def test_no_value_is_read_on_the_host_of_another_device(name, case):
    """An accelerator would be waited for; the meta device, which has no values, refuses. One score reads a number: see there."""
    elsewhere = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, arguments()[name][case])
    made = bodies()[getattr(OPS, name).default](*elsewhere)
    assert all(x.device.type == "meta" for x in tree_leaves(made) if isinstance(x, torch.Tensor))
