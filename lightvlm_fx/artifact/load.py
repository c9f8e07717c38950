"""`lightvlm.load`: an artifact as something that answers, with the names of transformers' generate()."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvlm_fx.artifact.manifest import differing, inside, read
from lightvlm_fx.artifact.sampling import Sampling
from lightvlm_fx.artifact.stages import Stages, check_providers
from lightvlm_fx.errors import ArtifactError, InputError

Array = NDArray[Any]
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")  # arguments of a model that its stages work out themselves
DEFAULTS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")  # that generation_config.json may set
DEFAULT_NEW_TOKENS = 20  # transformers' own, where neither the call nor generation_config.json says


class VLM:
    """An artifact with its sessions open. `generate` takes NumPy arrays or tensors, and returns the kind it was given."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], providers: Sequence[str], session_options: Any = None, prepack: bool = False
    ) -> None:
        check_providers(providers)
        self.folder, self.manifest = folder, manifest
        self.prepack = prepack
        self.providers, self.session_options = list(providers), session_options
        noted = folder / "generation_config.json"
        self.defaults: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
        self._stages: dict[int, Stages] = {}

    def stages(self, bucket: int = 0) -> Stages:
        """The sessions of one bucket, opened at first use."""
        if bucket not in self._stages:
            self._stages[bucket] = Stages(
                self.folder, self.manifest["buckets"][bucket], self.providers, self.session_options, self.prepack,
                self.manifest["dtype"] == "int8",
            )
        return self._stages[bucket]

    def generate(
        self, input_ids: Any, attention_mask: Any = None, pixel_values: Any = None, *, max_new_tokens: int | None = None,
        min_new_tokens: int = 0, eos_token_id: int | list[int] | None = None, streamer: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Prompt and answer [B, S + new] int64 of prompts input_ids [B, S], padded on the left where attention_mask is 0.

        With `pixel_values` and whatever else the processor returned. `do_sample`, `temperature`, `top_k`, `top_p`,
        `repetition_penalty` and `seed` as in `Sampling`; `streamer` gets every token as transformers' streamers do
        (`put`, `end`). Rows that have ended are filled with the padding token.

        Raises InputError where no bucket takes the batch, naming those that there are.
        """
        ids, given = _array(input_ids), _kind(input_ids)
        mask = np.ones_like(ids) if attention_mask is None else _array(attention_mask)
        known = {name for bucket in self.manifest["buckets"] for name in bucket["pictures"]}
        pictures = {k: _array(v) for k, v in options.items() if k in known}
        options = {k: v for k, v in options.items() if k not in known and k not in PER_TOKEN}
        wanted = {k: self.defaults[k] for k in DEFAULTS if self.defaults.get(k) is not None}
        sampling = Sampling.of(wanted | options)
        new = max_new_tokens if max_new_tokens is not None else self.defaults.get("max_new_tokens") or DEFAULT_NEW_TOKENS
        if new < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {new}")
        ends = self.manifest["eos_token_id"] if eos_token_id is None else eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        pixels = None if pixel_values is None else _array(pixel_values)
        number = self.bucket(ids, mask, pixels, pictures, new)
        return _back(self._answer(number, ids, mask, pixels, sampling, new, min_new_tokens, ends, streamer), given)

    def _answer(self, number: int, ids: Array, mask: Array, pixels: Array | None, sampling: Sampling, new: int, least: int,
                ends: list[int], streamer: Any) -> Array:  # fmt: skip
        pad, random = self.manifest["pad_token_id"], sampling.start()
        run = self.stages(number).start(ids, mask, pixels, pad)
        tokens, live = ids, np.ones(len(ids), bool)
        if streamer is not None:
            streamer.put(_for_streamer(ids))
        for step in range(new):
            logits = run.logits
            if ends and step < least:
                logits = logits.copy()
                logits[:, ends] = -np.inf
            token = np.where(live, sampling.choose(logits, tokens, random), pad)
            tokens = np.concatenate([tokens, token[:, None]], 1)
            if streamer is not None:
                streamer.put(_for_streamer(token))
            live &= ~np.isin(token, ends)
            if not live.any() or step + 1 == new:
                break
            run.step(token)
        if streamer is not None:
            streamer.end()
        return tokens

    def _differing(self, number: int, pictures: dict[str, Array], rows: int) -> list[str]:
        """Arguments beside the pixels (grids, sizes, pixel masks) that are not those that bucket `number` holds as constants."""
        bucket, out = self.manifest["buckets"][number], []
        for name, given in pictures.items():
            file = bucket["samples"].get(f"inputs.{name}")
            expected = None if file is None else np.load(inside(self.folder, file), allow_pickle=False)
            if expected is None or not np.array_equal(given, expected[: len(expected) // bucket["rows"] * rows]):
                out.append(name)
        return out

    def bucket(self, ids: Array, mask: Array, pixels: Array | None, pictures: dict[str, Array], new: int) -> int:
        """The smallest bucket that takes this batch. Raises InputError naming the buckets and why each does not."""
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise InputError(f"input_ids and attention_mask must be [B, S], got {ids.shape} and {mask.shape}")
        if not ids.size:
            raise InputError(f"the prompt is empty: input_ids have the shape {ids.shape}")
        if not mask[:, -1].all():
            raise InputError("the batch is padded on the right; pad on the left (processor.tokenizer.padding_side = 'left')")
        reasons, best = [], None
        for number, bucket in enumerate(self.manifest["buckets"]):
            why = _refusal(bucket, self.manifest["placeholders"], ids, mask, pixels, self._differing(number, pictures, len(ids)), new)
            if why:
                reasons.append(f"bucket {number} ({_describe(bucket)}): {why}")
            elif best is None or bucket["prompt_tokens"] < self.manifest["buckets"][best]["prompt_tokens"]:
                best = number
        if best is None:
            raise InputError("no bucket of the artifact takes this batch:\n  " + "\n  ".join(reasons) + "\nexport one with such an example")
        return best


def _describe(bucket: dict[str, Any]) -> str:
    return f"{bucket['rows']} rows, pictures {bucket['pixel_values']} of {bucket['images']} tokens, {bucket['text_tokens']} of text"


def _refusal(bucket: dict[str, Any], placeholders: list[int], ids: Array, mask: Array, pixels: Array | None,
             differing: list[str], new: int) -> str:  # fmt: skip
    """Why `bucket` does not take a batch; empty if it does."""
    visual = (np.isin(ids, placeholders) & (mask != 0)).sum(1)
    real, whole = mask.astype(bool).sum(1), sum(bucket["images"])
    checks: list[tuple[bool, str]] = [
        (len(ids) > bucket["rows"], f"the batch has {len(ids)} rows"),
        (bool((real - visual > bucket["text_tokens"]).any()), f"a row has {int((real - visual).max())} tokens of text"),
        (bool((real < bucket["least_tokens"]).any()), f"a row has fewer than {bucket['least_tokens']} tokens, which the schedule protects"),
        (0 < bucket["new_tokens"] < new, f"its caches have room for {bucket['new_tokens']} new tokens, {new} are wanted"),
        (pixels is None and bool(visual.any()), "the prompt holds placeholders for pictures, but no picture came with it"),
    ]
    if pixels is not None:
        rows = len(ids)
        per_row = bucket["pixel_values"][0] // bucket["rows"]
        shape = [per_row * rows, *bucket["pixel_values"][1:]]
        checks.append((list(pixels.shape) != shape, f"pixel_values have the shape {list(pixels.shape)}"))
        checks.append((not (visual == whole).all(), f"rows hold {visual.tolist()} visual tokens, every one must hold {whole}"))
        checks.append((bool(differing), f"{' and '.join(differing)} differs from what the bucket was made for"))
    return "; ".join(message for wrong, message in checks if wrong)


def load(
    folder: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), session_options: Any = None, verify: bool = True,
    prepack: bool = False,
) -> VLM:  # fmt: skip
    """The artifact in `folder`, ready to answer. Opens no session before the first answer.

    All sessions read their weights from one mapped file. With `prepack`, the decode session rearranges them into memory of its own,
    a second copy that makes steps a little faster (docs/benchmarks.md). `session_options`, onnxruntime's own, replace all this.

    With `verify` (the default) every file is hashed first. Raises ArtifactError for a folder that is none, changed
    files, a newer schema, paths or links that lead out of the folder, or a target that ONNX Runtime does not run; InputError for
    a provider that it does not have.
    """
    home = Path(folder)
    manifest = read(home)
    if manifest["target"] == "torch-export":
        raise ArtifactError(f"{home} was exported for torch-export; open its stages with torch.export.load")
    if verify and (wrong := differing(home, manifest)):
        raise ArtifactError(f"{home} is not what was exported:\n  " + "\n  ".join(wrong) + "\nexport again, or copy the whole folder again")
    return VLM(home, manifest, providers, session_options, prepack)


def _kind(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def _array(x: Any) -> Array:
    if _kind(x) != "torch":
        return np.asarray(x)
    x = x.detach().cpu()
    return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()  # NumPy has no bfloat16


def _back(x: Array, kind: str) -> Any:
    if kind != "torch":
        return x
    import torch

    return torch.from_numpy(x)


class _Tokens:
    """Tokens as transformers' streamers ask for them: `shape`, `[0]`, `tolist()`."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape = array.shape

    def __getitem__(self, at: Any) -> Any:
        return _Tokens(self.array[at])

    def __iter__(self) -> Any:
        return iter(self.array.tolist())

    def __len__(self) -> int:
        return len(self.array)

    def tolist(self) -> Any:
        return self.array.tolist()


def _for_streamer(tokens: Array) -> _Tokens:
    return _Tokens(tokens)
