"""Vision towers whose pictures arrive as rows with a break token behind each (Pixtral).

There an image's placeholders are not one run: rows joined by one and the same break token belong together.
"""

from __future__ import annotations

BREAKS_ROWS = frozenset({"pixtral"})  # vision_config.model_type
