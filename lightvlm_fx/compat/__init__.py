"""What differs between releases of torch and transformers, and every private API of theirs that is used.

Each has its test in tests/core/test_compat.py, which also holds every other file of the package to public APIs. Which
releases these are: lightvlm_fx/releases.py.
"""

from lightvlm_fx.compat.compiling import (
    aoti_compile,
    compiled_graphs,
    flash_attention,
    inductor,
    maybe_dynamic,
    packed_product,
    packed_weight,
    packs_bfloat16,
    skipped_cuda_graphs,
)
from lightvlm_fx.compat.models import (
    DEEPSTACK,
    SINCE,
    NoLargestLength,
    attention_name,
    cache_argument,
    given_cache,
    onnx_program,
    packed_attention,
    sort,
    with_cache,
)
from lightvlm_fx.compat.modules import (
    ASSERT_METADATA,
    ASSERT_SCALAR,
    OpOverload,
    OpOverloadPacket,
    TorchDispatchMode,
    body,
    for_real,
    hooks,
    own_configs,
    pytree,
    schema,
    shallow,
)
from lightvlm_fx.compat.sizes import (
    GuardOnDataDependentSymNode,
    at_least_one,
    equal_sizes,
    expression,
    fake_mode,
    free_unbacked_symbols,
    fresh_mode,
    hint,
    on_fakes,
    operators,
    settled,
    shapes_in_python,
    size_checks,
    symbolic_size,
    without_stack_traces,
)
from lightvlm_fx.compat.threads import (
    tracing,
)
