"""Vision towers whose pictures arrive as rows, each with one more token after it.

There an image's placeholders are not one run. After every row of a Fuyu picture (which has no tower) stands the
same break token; after the last row of a Pixtral or Apertus 1.5 picture
stands another one, which ends the picture.
"""

from __future__ import annotations

# by vision_config.model_type, the model's own where it has no tower: does a token of its own end the last row?
BREAKS_ROWS = {"pixtral": True, "apertus1p5_vision_tokenizer": True, "fuyu": False}
