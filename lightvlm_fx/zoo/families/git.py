"""GIT: the picture goes before the text, without placeholders."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import ONE_PICTURE, decoder, pixels, tower
from lightvlm_fx.zoo.recipe import Recipe


def git_config(layers: int) -> dict[str, Any]:
    return decoder(layers, vision_config=tower(32, 8))


FAMILIES = {
    "git": Recipe(git_config, (), pixels(32, 32), caveat=f"{ONE_PICTURE}; left padding changes the answer"),
}
