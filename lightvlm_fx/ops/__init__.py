"""The ops that capture and passes put into a graph: pure tensor code with reference semantics.

Shapes everywhere: B rows, S tokens that arrive, K tokens that stay, H query heads, G KV heads, d head width,
D hidden width, C cache capacity. A *segment* [B, S] says what each token is: PADDING, TEXT, or the number
of the image (or video) it belongs to within its row. Scores and merges accumulate in float32.
Importing this package registers every op under `torch.ops.lightvlm`.
"""

from lightvlm_fx.ops import (  # noqa: F401
    attention,
    cached_attention,
    compact_index,
    guard_visual,
    keep_entries,
    kv_budgets,
    kv_score_density,
    kv_score_elite,
    kv_score_marks,
    kv_score_question,
    kv_score_rows,
    kv_spread,
    mask_out,
    merge_entries,
    merge_tokens,
    merge_values,
    nearest_survivor,
    recover_tokens,
    score_density,
    score_last_query,
    score_peak,
    score_random,
    score_received,
    score_text_mean,
    score_uniform,
    select_tokens,
    take_entries,
    take_tokens,
)
