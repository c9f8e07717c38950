"""An artifact as an engine. Needs no torch."""

from __future__ import annotations

import copy
from typing import Any

from PIL import Image

from lightvlm_fx.artifact.load import VLM
from lightvlm_fx.pictures import inputs_of_chat, processor_of
from lightvlm_fx.serving.engine import Put, Tokens


class ArtifactEngine:
    """`vlm` is what lightvlm.load returned. Opens its sessions at once, and raises InputError where it has no processor."""

    seeds_alone = False
    context = None  # its buckets say what they take

    def __init__(self, vlm: VLM, name: str) -> None:
        self.vlm, self.name = vlm, name
        self.processor = processor_of(vlm)
        manifest = vlm.manifest
        self.fingerprint = manifest["fingerprint"]
        self.about = {"schedule": manifest["schedule"]["name"], "target": manifest["target"], "dtype": manifest["dtype"]}
        self.pad = manifest["pad_token_id"]
        self.ends = frozenset(manifest["eos_token_id"])
        self.usual = vlm.defaults.get("max_new_tokens")
        rooms = [bucket["new_tokens"] for bucket in manifest["buckets"]]
        self.longest = max(rooms) if all(rooms) else None  # 0: answers of any length
        self.rows = max(bucket["rows"] for bucket in manifest["buckets"])
        self._reading = copy.deepcopy(self.processor.tokenizer)  # one that encodes cannot be read with by another thread
        for number in range(len(rooms)):
            vlm.stages(number)
        self.prepare([{"role": "user", "content": [{"type": "text", "text": "describe"}]}], [])

    def prepare(self, chat: list[dict[str, Any]], pictures: list[Image.Image]) -> dict[str, Any]:
        return inputs_of_chat(self.processor, chat, pictures, "np")

    def decode(self, tokens: list[int]) -> str:
        return self._reading.decode(tokens, skip_special_tokens=True)

    def answer(self, inputs: dict[str, Any], options: dict[str, Any], put: Put) -> None:
        self.generate(inputs, **options, streamer=Tokens(put))

    def generate(self, inputs: dict[str, Any], **options: Any) -> Any:
        """Prompts and answers [B, S + new] of `inputs`."""
        return self.vlm.generate(**inputs, **options)
