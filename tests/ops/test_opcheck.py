"""torch.library's own check of every op: schemas tell the truth, fake results look like real ones."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightvlm_fx.compat import fresh_mode, symbolic_size
from lightvlm_fx.methods import operators
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
    norm = torch.randn(2, 4, 8, generator=draw)
    index, left, rank = OPS.select_tokens(score, SEGMENT, BUDGET, K)
    went = OPS.nearest_survivor(hidden, SEGMENT, index, left)
    small = mask[:, :, :K, :K]
    per_head = torch.rand(2, 2, 8, generator=draw)
    entries, _ = OPS.keep_entries(per_head, SEGMENT, torch.tensor([5, 3]), K, 1, 1, False, False, 0.0)
    values = {
        "hidden": hidden, "previous": hidden.flip(0), "embeds": hidden, "q": q, "k": k, "v": v, "keys": k, "values": v, "size": size,
        "worth": None, "score": score, "rank": rank, "segment": SEGMENT, "mask": None, "scale": 0.5, "budget": BUDGET, "stay": K,
        "index": index, "left": left, "entry": entries, "went": went.unsqueeze(1).repeat(1, 2, 1), "layer": 1, "shared": False,
        "statistic": torch.rand(2, 3, 2, generator=draw),
        "grid": torch.randint(1, 4, (2, 8, 6), generator=draw), "tower": score, "noted": score,
    }  # fmt: skip
    others = values | {"mask": mask, "shared": True, "worth": per_head}
    others |= {name: values[name].bfloat16() for name in ("hidden", "previous", "embeds")}
    others |= {name: values[name].half() for name in ("q", "k", "v", "keys", "values")}
    calls = {name: [method_call(*made, given) for given in (values, others)] for name, made in operators.every().items()}
    return calls | {
        "attention": [(q, k, v, None, 0.5, 0, 0, 0.0), (q, k, v, mask, 0.5, 0, 0, 3.0), (q, k, v, None, 0.5, 0, 0, 0.0, size * 2)],
        "compact_index": [(SEGMENT, left)],
        "keep_entries": [
            (per_head, SEGMENT, torch.tensor([5, 3]), K, 1, 1, False, True, 0.0),
            (per_head[:, :1], SEGMENT, torch.tensor([2, 1]), K, 0, 0, True, False, 0.0),
            (per_head, SEGMENT, torch.tensor([6, 4]), K, 1, 1, False, False, 0.4),
        ],
        "guard_visual": [(per_head, SEGMENT)],
        "kv_budgets": [(torch.rand(2, 3, generator=draw), torch.full((2, 3), 4), torch.full((2, 3), 6), 1)],
        "mask_out": [(small, left), (torch.where(small, 0.0, -1e9)[:1], left)],
        "merge_tokens": [
            (hidden, size, index, went),
            (hidden.bfloat16(), size, index, went),
        ],
        "nearest_survivor": [(hidden, SEGMENT, index, left), (hidden.bfloat16(), SEGMENT, index, left)],
        "packed_linear": [(hidden, torch.randn(3, 5, generator=draw), None), (hidden, torch.randn(3, 5, generator=draw), torch.ones(3))],
        "put_tokens": [(hidden, hidden[:, :K], index, SEGMENT), (hidden.bfloat16(), hidden[:, :K].bfloat16(), index, SEGMENT)],
        "text_index": [(SEGMENT, K)],
        "text_mask": [(SEGMENT, index)],
        "received": [(q, k, norm, SEGMENT, None, 0.5, False), (q.half(), k.half(), norm, SEGMENT, mask, 0.5, True)],
        "select_tokens": [(score, SEGMENT, BUDGET, K)],
        "take_entries": [(k, entries), (k.half(), entries[:, :1]), (per_head, entries)],
        "take_tokens": [
            (hidden, index, 0, 1),
            (hidden[:1], index, 0, 1),
            (hidden[0], index, -1, 0),
            (mask, index, 0, 3),
        ],
    }


def method_call(kind, role, values):
    """The arguments of a method's operator, from `values` by name and its default options."""
    given = values | ({"index": values["entry"]} if role in ("merge", "went") else {})
    own = [field.get_default() for name, field in kind.model_fields.items() if name in operators.options(kind)]
    return (*(given[name] for name in operators.arguments(kind, role)), *(own if operators.ROLES[role].options else ()))


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


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_fake_result_has_any_number_of_rows(name, case):
    """With `len` of a tensor in it, a graph would be of two rows, and others would be traced for other numbers."""
    mode = fresh_mode()
    rows = symbolic_size(mode, "rows", 2)

    def any_rows(x):
        if not isinstance(x, torch.Tensor):
            return x
        with mode:
            return torch.empty([rows if size == 2 and d == 0 else size for d, size in enumerate(x.shape)], dtype=x.dtype)

    given = tree_map(any_rows, arguments()[name][case])
    with mode:
        getattr(OPS, name).default(*given)
    assert not mode.shape_env.replacements
