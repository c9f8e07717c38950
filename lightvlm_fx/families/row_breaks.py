"""Vision towers whose pictures arrive as rows with a break token behind each (Pixtral; Fuyu, which has no tower).

There an image's placeholders are not one run: rows joined by one and the same break token belong together.
"""

from __future__ import annotations

BREAKS_ROWS = frozenset({"pixtral", "fuyu"})  # vision_config.model_type; the model's own where it has no tower
