"""Draw the demo pictures: `python -m lightvlm_fx.bundled.draw`. Held-out digits, several sizes, fixed seed.

Each picture gets a text file of the same name with questions that have one right answer.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from lightvlm_fx.bundled import PICTURES
from lightvlm_fx.bundled.scenes import KINDS, ask, render, sample_scene

# name: things in the scene, side of the picture in pixels, kinds of question
PLAN = {
    "1-crowd": (8, 384, KINDS),
    "2-large": (6, 512, ("where", "colour", "describe")),
    "3-small": (5, 150, ("digit", "count", "shape")),
    "4-seven": (7, 384, ("where", "digit", "count", "describe")),
}


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for number, (name, (things, side, kinds)) in enumerate(PLAN.items()):
        rng = np.random.default_rng([2026, 11, number])
        scene = sample_scene(rng, things)
        picture = Image.fromarray(render(scene, rng, held_out=True, scale=4))
        picture.resize((side, side), Image.Resampling.LANCZOS).save(PICTURES / f"{name}.png", optimize=True)
        questions = [q.text for kind in kinds if (q := ask(scene, kind, rng))]
        (PICTURES / f"{name}.txt").write_text("\n".join(questions) + "\n")


if __name__ == "__main__":
    main()
