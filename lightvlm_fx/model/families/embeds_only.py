"""Models whose own generate() calls the language model with embeddings alone: its input_ids never get there.

The cut needs to know which tokens are visual, and no method of theirs tells it.
"""

from __future__ import annotations

EMBEDS_ONLY = frozenset({"blip-2", "instructblip", "instructblipvideo"})  # config.model_type
