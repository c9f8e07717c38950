"""The ops that capture and passes put into a graph: pure tensor code with reference semantics.

Shapes everywhere: B rows, S tokens that arrive, K tokens that stay, H query heads, G KV heads, d head width,
D hidden width, C cache capacity. A *segment* [B, S] says what each token is: PADDING, TEXT, or the number
of the image (or video) it belongs to within its row. Scores and merges accumulate in float32.
Importing this package registers them under `torch.ops.lightvlm`; those of methods follow from their classes (methods/operators.py).
"""

from lightvlm_fx.ops import (
    attention,
    cached_attention,
    compact_index,
    guard_visual,
    keep_entries,
    kv_budgets,
    mask_out,
    merge_tokens,
    nearest_survivor,
    packed_linear,
    put_tokens,
    select_tokens,
    take_entries,
    take_tokens,
    text_index,
    text_mask,
)
