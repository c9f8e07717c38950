"""`lightvlm.load`: an artifact as something that answers, with the names of transformers' generate()."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvlm_fx.artifact.files import AGAIN, Files
from lightvlm_fx.artifact.manifest import read
from lightvlm_fx.artifact.pictures import grids, prepare
from lightvlm_fx.artifact.sampling import Sampling, whole
from lightvlm_fx.artifact.schema import shapes
from lightvlm_fx.artifact.stages import Engine, Stages, packed, tokens_of_pictures
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.errors import ArtifactError, InputError
from lightvlm_fx.spans import VisualMarks

Array = NDArray[Any]
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")  # arguments of a model that its stages work out themselves
DEFAULTS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")  # that generation_config.json may set
DEFAULT_NEW_TOKENS = 20  # transformers' own, where neither the call nor generation_config.json says


class VLM:
    """An artifact with its sessions open. `generate` takes NumPy arrays or tensors, and returns the kind it was given."""

    def __init__(
        self, files: Files, manifest: dict[str, Any], providers: Sequence[str], session_options: Any = None, prepack: bool = False
    ) -> None:
        self.engine = engine_of(manifest, providers, session_options, prepack)
        self.files, self.folder, self.manifest = files, files.home, manifest
        self.marks = VisualMarks(**{f.name: manifest["placeholders"][f.name] for f in fields(VisualMarks)})
        self.defaults = _defaults(files, manifest)
        # held from now on: what the stages of a bucket of fixed sizes were made for
        self._made_for = [{name: files.array(bucket["samples"][f"inputs.{name}"]) for name in bucket["arguments"]}
                          if bucket["vision"]["kind"] == "fixed" else {} for bucket in manifest["buckets"]]  # fmt: skip
        self._stages: dict[int, Stages] = {}

    def stages(self, bucket: int = 0) -> Stages:
        """The sessions of one bucket, opened at first use."""
        if bucket not in self._stages:
            self._stages[bucket] = Stages(self.files, self.manifest["buckets"][bucket], self.marks, self.engine)
        return self._stages[bucket]

    def generate(
        self, input_ids: Any, attention_mask: Any = None, pixel_values: Any = None, *, max_new_tokens: int | None = None,
        min_new_tokens: int = 0, eos_token_id: int | list[int] | None = None, streamer: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Prompt and answer [B, S + new] int64 of prompts input_ids [B, S], padded on the left where attention_mask is 0.

        Tokens whose mask is 0 are left out wherever they stand. With `pixel_values` and whatever else the processor returned.
        `do_sample`, `temperature`, `top_k`, `top_p`, `repetition_penalty` and `seed` as in `Sampling`; `streamer` gets every token as
        transformers' streamers do (`put`, `end`). Rows that have ended are filled with the padding token.

        Raises InputError where no bucket takes the batch, naming those that there are, and for ids outside the vocabulary, numbers
        that are NaN or infinite, and lengths that are no whole numbers; ArtifactError where the folder's files were written to since.
        """
        ids, given = _numbers("input_ids", input_ids), _kind(input_ids)
        mask = np.ones_like(ids) if attention_mask is None else _numbers("attention_mask", attention_mask)
        known = {name for bucket in self.manifest["buckets"] for name in bucket["arguments"]}
        pictures = {k: _numbers(k, v) for k, v in options.items() if k in known}
        pictures = {} if pixel_values is None else pictures | {"pixel_values": _numbers("pixel_values", pixel_values)}
        options = {k: v for k, v in options.items() if k not in known and k not in PER_TOKEN}
        sampling = Sampling.of({k: self.defaults[k] for k in DEFAULTS if k in self.defaults} | options)
        new = max_new_tokens if max_new_tokens is not None else self.defaults.get("max_new_tokens", DEFAULT_NEW_TOKENS)
        new, least = whole("max_new_tokens", new, 1), whole("min_new_tokens", 0 if min_new_tokens is None else min_new_tokens, 0)
        ends = self.manifest["eos_token_id"] if eos_token_id is None else self._ends(eos_token_id)
        self._check_ids(ids)
        number = self.bucket(ids, mask, pictures, new)
        return _back(self._answer(number, ids, mask, pictures, sampling, new, least, ends, streamer), given)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model can say: the V of its logits [B, V]."""
        return int(shapes(self.manifest["buckets"][0], "prefill", "outputs")["logits"][1])

    def _ends(self, given: Any) -> list[int]:
        """The end tokens that a caller names: one, or a list. Raises InputError for one that is no token."""
        flat = given if isinstance(given, list | tuple) else np.ravel(_array(given)).tolist()
        ends = [whole("eos_token_id", token, 0) for token in flat]
        if any(token >= self.vocabulary for token in ends):
            raise InputError(f"eos_token_id must name tokens below {self.vocabulary}, the size of the vocabulary, got {ends}")
        return ends

    def _check_ids(self, ids: Array) -> None:
        """Raises InputError where ids are no tokens: an embedding would read another row, or none."""
        if ids.dtype.kind not in "iu":
            raise InputError(f"input_ids must be whole numbers, got {ids.dtype}")
        wrong = ((ids < 0) | (ids >= self.vocabulary)) & ~np.isin(ids, self.marks.ids)
        if wrong.any():
            raise InputError(f"input_ids must be tokens from 0 to {self.vocabulary - 1}, got {sorted({*ids[wrong].tolist()})[:5]}; "
                             "use the processor of the model that was exported")  # fmt: skip

    def _answer(self, number: int, ids: Array, mask: Array, pictures: dict[str, Array], sampling: Sampling, new: int, least: int,
                ends: list[int], streamer: Any) -> Array:  # fmt: skip
        pad, random = self.manifest["pad_token_id"], sampling.start()
        run = self.stages(number).start(ids, mask, pictures, pad)
        tokens, live = ids, np.ones(len(ids), bool)
        if streamer is not None:
            streamer.put(_for_streamer(ids))
        for step in range(new):
            logits = run.logits
            if not np.isfinite(logits.max(1)[live]).all():
                raise ArtifactError(f"{self.folder}: the logits of token {step} are NaN or infinite: sums overflow in "
                                    f"{self.manifest['dtype']}, or the weights are "
                                    "damaged; run `lightvlm verify`, or export with dtype='float32'")  # fmt: skip
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

    def bucket(self, ids: Array, mask: Array, pictures: dict[str, Array], new: int) -> int:
        """The smallest bucket that takes this batch. Raises InputError naming the buckets and why each does not."""
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise InputError(f"input_ids and attention_mask must be [B, S], got {ids.shape} and {mask.shape}")
        if not ids.size:
            raise InputError(f"the prompt is empty: input_ids have the shape {ids.shape}")
        if not mask[:, -1].all():
            raise InputError("the batch is padded on the right; pad on the left (processor.tokenizer.padding_side = 'left')")
        images = tokens_of_pictures(*packed(ids, mask), self.marks)
        reasons, best = [], None
        for number, bucket in enumerate(self.manifest["buckets"]):
            why = self.refused(number, images, mask, pictures, new)
            if why:
                reasons.append(f"bucket {number} ({_describe(bucket)}): {why}")
            elif best is None or bucket["prompt_tokens"] < self.manifest["buckets"][best]["prompt_tokens"]:
                best = number
        if best is None:
            raise InputError("no bucket of the artifact takes this batch:\n  " + "\n  ".join(reasons) + "\nexport one with such an example")
        return best

    def refused(self, number: int, images: list[list[int]], mask: Array, pictures: dict[str, Array], new: int) -> str:
        """Why bucket `number` does not take rows of mask [B, S] with pictures of `images` tokens each; empty if it does."""
        bucket = self.manifest["buckets"][number]
        return _refusal(bucket, images, mask.astype(bool).sum(1), new) or self._refused_pictures(number, images, pictures)

    def _refused_pictures(self, number: int, images: list[list[int]], pictures: dict[str, Array]) -> str:
        """Why bucket `number` does not take these pictures, of prompts with `images` tokens each; empty if it does."""
        bucket = self.manifest["buckets"][number]
        if not pictures:
            return "the prompt holds placeholders for pictures, but no picture came with it" if any(images) else ""
        if bucket["vision"]["kind"] == "fixed":
            return "; ".join(self._differing(number, images, pictures))
        try:
            made, wanted = prepare(bucket["vision"], pictures)[1], sum(map(sum, images))
            sizes = grids(bucket["grid"], pictures).prod(1).tolist() if bucket["grid"] else None
        except InputError as error:
            return str(error)
        if made != wanted:
            return f"the pictures make {made} visual tokens, the prompt holds {wanted}"
        flat = [n for row in images for n in row]
        return f"the pictures have {sizes} tokens, the prompt holds {flat}" if sizes not in (None, flat) else ""

    def _differing(self, number: int, images: list[list[int]], pictures: dict[str, Array]) -> list[str]:
        """What is other than the example, where the vision stage holds its sizes as constants."""
        bucket = self.manifest["buckets"][number]
        out, rows = [], len(images)
        made_for = self._made_for[number]
        for name, given in pictures.items():
            expected = made_for.get(name)
            expected = None if expected is None else expected[: len(expected) // bucket["rows"] * rows]
            if name == "pixel_values" and expected is not None:
                if given.shape != expected.shape:
                    out.append(f"pixel_values have the shape {list(given.shape)}, the vision stage takes {list(expected.shape)} alone")
            elif expected is None or not np.array_equal(given, expected):
                out.append(f"{name} differs from what the vision stage was made for")
        if any(row != bucket["example"][0] for row in images):
            out.append(f"rows hold pictures of {images} tokens, every one must hold {bucket['example'][0]}")
        return out


def _describe(bucket: dict[str, Any]) -> str:
    """What a bucket takes, in words."""
    pictures = f"{bucket['visual_tokens']} visual tokens in {bucket['pictures']} pictures"
    alone = ", of the example's sizes alone" if bucket["vision"]["kind"] == "fixed" else ""
    return f"{bucket['rows']} rows of at most {bucket['text_tokens']} tokens of text and {pictures}{alone}"


def _refusal(bucket: dict[str, Any], images: list[list[int]], real: Array, new: int) -> str:
    """Why `bucket` does not take rows of `real` [B] tokens with pictures of `images` tokens; empty if it does."""
    visual = np.array([sum(row) for row in images])
    text, count, least = real - visual, max(map(len, images)), min((n for row in images for n in row), default=bucket["least_picture"])
    checks: list[tuple[bool, str]] = [
        (len(images) > bucket["rows"], f"the batch has {len(images)} rows"),
        (bool((text > bucket["text_tokens"]).any()), f"a row has {int(text.max())} tokens of text"),
        (bool((visual > bucket["visual_tokens"]).any()), f"a row has {int(visual.max())} visual tokens"),
        (count > bucket["pictures"], f"a row has {count} pictures"),
        (least < bucket["least_picture"], f"a picture has {least} tokens, below the {bucket['least_picture']} that the schedule keeps"),
        (bool((real < bucket["least_tokens"]).any()), f"a row has fewer than {bucket['least_tokens']} tokens, which the schedule protects"),
        (0 < bucket["new_tokens"] < new, f"its caches have room for {bucket['new_tokens']} new tokens, {new} are wanted"),
    ]
    return "; ".join(message for wrong, message in checks if wrong)


def engine_of(manifest: dict[str, Any], providers: Sequence[str], session_options: Any = None, prepack: bool = False) -> Engine:
    """What opens the stages of an artifact's target."""
    opened: Engine = TARGETS[manifest["target"]].opens_with()(manifest["dtype"], providers, session_options, prepack)
    return opened


def load(
    folder: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), session_options: Any = None, verify: bool = True,
    prepack: bool = False,
) -> VLM:  # fmt: skip
    """The artifact in `folder`, ready to answer. Opens no session before the first answer.

    All sessions read their weights from one mapped file. With `prepack`, the decode session rearranges them into memory of its own,
    a second copy that makes steps a little faster (docs/benchmarks.md). `session_options`, onnxruntime's own, replace all this. On
    OpenVINO (target openvino) every session always has a copy of its own, `providers` names one device, and `session_options` is a
    dictionary of OpenVINO's properties, which are set above ours.

    With `verify` (the default) every file is hashed first. Files stay open from then on: one that is moved, deleted or replaced
    later is read as it was, one that is written to in place is an ArtifactError. Only what the manifest lists is read.

    Raises ArtifactError for a folder that is none, changed files, a newer schema, a manifest whose types, ranges or sums do not
    hold, paths or links that lead out of the folder, or a target that nothing here runs; InputError for a provider or device
    that is not there, ImportError where the runtime is not installed.
    """
    home = Path(folder)
    manifest = read(home)
    if not TARGETS[manifest["target"]].runtime:
        raise ArtifactError(f"{home} was exported for {manifest['target']}; open its stages with torch.export.load")
    files = Files(home, manifest, checked=verify)
    if verify and files.wrong:
        raise ArtifactError(f"{home} is not what was exported:\n  " + "\n  ".join(files.wrong) + f"\n{AGAIN}")
    return VLM(files, manifest, providers, session_options, prepack)


def _defaults(files: Files, manifest: dict[str, Any]) -> dict[str, Any]:
    """What generation_config.json says of how to answer. Raises ArtifactError where it is other than the manifest, or no such file."""
    name = "generation_config.json"
    if name not in files.listed:
        return {}
    try:
        found = json.loads(files.data(name))
        said = {k: found[k] for k in (*DEFAULTS, "max_new_tokens") if found.get(k) is not None}
        for key, value in said.items():
            fits = isinstance(value, bool) if key == "do_sample" else type(value) in (int, float) and math.isfinite(value)
            if not fits:
                raise ValueError(f"{key} is {value!r}")
        if "max_new_tokens" in said:
            whole("max_new_tokens", said["max_new_tokens"], 1)
        ends = found.get("eos_token_id")
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if not set(manifest["eos_token_id"]) <= set(ends):
            raise ValueError(f"eos_token_id is {ends}, the manifest says {manifest['eos_token_id']}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{files.home}: {name} is not what transformers writes: {error}; {AGAIN}") from error
    return said


def _kind(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def _numbers(name: str, value: Any) -> Array:
    """`value` as an array. Raises InputError where it is none of finite numbers: graphs would answer NaN with token 0."""
    try:
        found = _array(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}") from error
    if found.dtype.name == "bfloat16":
        found = found.astype(np.float32)
    if found.dtype.kind not in "biuf":
        raise InputError(f"{name} must be an array of numbers, got one of {found.dtype}")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError(f"{name} holds NaN or infinite numbers; see to what the processor was given, or to its rescaling")
    return found


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
