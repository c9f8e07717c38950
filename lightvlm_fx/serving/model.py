"""A compiled transformers model as an engine."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image

from lightvlm_fx.pictures import inputs_of_chat
from lightvlm_fx.serving.engine import Put, Tokens

TRIAL = (448, 336)  # pixels of the picture that warms up; graphs are for every size


class ModelEngine:
    """`model` is what lightvlm.compile returned; any model of transformers with generate() answers, too."""

    seeds_alone = True  # torch's generator is one for all threads

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model, processor, name
        handle = getattr(model, "lightvlm", None)
        self.fingerprint = handle.schedule.fingerprint if handle else ""
        self.about = {"schedule": handle.schedule.name} if handle else {}
        config = model.generation_config
        ends = config.eos_token_id
        self.ends = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
        pads = (config.pad_token_id, processor.tokenizer.pad_token_id, *self.ends, 0)
        self.pad = next(token for token in pads if token is not None)
        self.usual, self.longest, self.rows = config.max_new_tokens, None, None
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._reading = copy.deepcopy(processor.tokenizer)  # one that encodes cannot be read with by another thread

    def prepare(self, chat: list[dict[str, Any]], pictures: list[Image.Image]) -> dict[str, Any]:
        return inputs_of_chat(self.processor, chat, pictures, "pt")

    def decode(self, tokens: list[int]) -> str:
        return self._reading.decode(tokens, skip_special_tokens=True)

    def answer(self, inputs: dict[str, Any], options: dict[str, Any], put: Put) -> None:
        options = dict(options)
        seed = options.pop("seed", None)
        if seed is not None:
            torch.manual_seed(seed)
        try:
            self.generate(inputs, **options, streamer=Tokens(put))
        finally:
            if seed is not None:
                torch.seed()  # the next one must not be known

    def generate(self, inputs: dict[str, Any], **options: Any) -> Any:
        """Prompts and answers [B, S + new] of `inputs`, whatever device and floating-point type they have."""
        return self.model.generate(**{k: self._moved(x) for k, x in inputs.items()}, **options, num_beams=1)

    def warm_up(self) -> None:
        """Compile what one question needs, with a picture and without. Raises InputError where the processor has no chat template."""
        for pictures in ([Image.new("RGB", TRIAL)], []):
            content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": "describe"}]
            inputs = self.prepare([{"role": "user", "content": content}], pictures)
            self.answer(inputs, {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}, lambda token: None)

    def _moved(self, x: Any) -> Any:
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x)
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(self.model.device, self.model.dtype if x.is_floating_point() else None)
