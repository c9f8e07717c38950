"""`lightvlm bench prefill`: full model, compiled full model and compiled schedules, side by side in one run.

Weights are random and made here; only shapes matter for time. Variants take turns, so that a noisy machine
disturbs all alike; the figure that counts is a ratio of medians.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor

from lightvlm_fx.bench import video
from lightvlm_fx.errors import InputError, UnknownName
from lightvlm_fx.explanation import Explanation, explain
from lightvlm_fx.schedule import Schedule


@dataclass(frozen=True)
class Shape:
    """A decoder shape to measure."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    visual: int  # visual tokens, a square

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads"
        return f"{self.name} shape ({self.hidden} wide, {self.layers} layers, {heads}, {self.intermediate}), {self.visual} visual tokens"


SHAPES = {
    s.name: s
    for s in (
        Shape("tiny", 64, 4, 4, 2, 128, 64),
        Shape("0.5b", 896, 24, 14, 2, 4864, 1024),
        Shape("internvl2.5-8b", 4096, 32, 32, 8, 14336, 1792),
        Shape("internvl2.5-26b", 6144, 48, 48, 8, 16384, 1792),
        Shape("qwen2.5-vl-7b", 3584, 28, 28, 4, 18944, 1024),
    )
}


def shape(name: str, layers: int | None = None) -> Shape:
    """A shape by name, with another number of layers where given; raises UnknownName."""
    if name not in SHAPES:
        raise UnknownName.of("shape", name, SHAPES)
    return SHAPES[name] if layers is None else replace(SHAPES[name], layers=layers)


TOWERS = {  # width, MLP, blocks, heads
    "toy": (32, 32, 1, 1),
    "clip-l": (1024, 4096, 24, 16),
}


def build(shape: Shape, device: str, dtype: torch.dtype, tower: str = "toy") -> Any:
    """A LLaVA with this decoder, a tower that makes the right number of visual tokens, and random weights."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

    rows = next(r for r in range(int(shape.visual**0.5), 0, -1) if shape.visual % r == 0)
    if tower not in TOWERS:
        raise UnknownName.of("tower", tower, TOWERS)
    width, mlp, blocks, heads = TOWERS[tower]
    vision = CLIPVisionConfig(hidden_size=width, intermediate_size=mlp, num_hidden_layers=blocks, num_attention_heads=heads,
                              image_size=rows * 4, patch_size=4)  # fmt: skip
    text = Qwen2Config(vocab_size=2048, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
                       num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
                       num_key_value_heads=shape.kv_heads, max_position_embeddings=32768,
                       pad_token_id=0, bos_token_id=None, eos_token_id=None)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=rows * rows,
                         vision_feature_layer=-1)  # fmt: skip
    return random_weights(LlavaForConditionalGeneration, config, device, dtype)


def random_weights(kind: Any, config: Any, device: str, dtype: torch.dtype) -> Any:
    """A model of class `kind`, made where and as it runs."""
    with torch.device(device):
        torch.manual_seed(0)
        old = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = kind(config)
        finally:
            torch.set_default_dtype(old)
    return model.eval().requires_grad_(False)


def example(model: Any, shape: Shape, batch: int, text: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Pictures until `shape.visual` tokens are reached, then `text` tokens."""
    each = model.config.image_seq_length
    pictures = shape.visual // each
    ids = torch.full((batch, pictures * each + text), 10, device=device)
    ids[:, 1 : 1 + pictures * each] = 3
    size = model.config.vision_config.image_size
    pixels = torch.randn(batch * pictures, 3, size, size, device=device, dtype=dtype)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


@dataclass
class Variant:
    """One thing that is timed."""

    name: str
    run: Callable[[], Any]
    explanation: Explanation | None = None
    seconds: list[float] | None = None
    first_s: float = 0.0  # capture and compile included
    rewrite_s: float = 0.0  # capture and rewriting only
    reduction_share: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds or [float("nan")])


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def prefill(
    shape: Shape,
    schedules: dict[str, Schedule],
    *,
    batch: int = 1,
    text: int = 64,
    repeats: int = 7,
    backend: str = "inductor",
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    prepack: bool = False,
    tower: str = "toy",
    frames: int = 0,
    tell: Callable[[str], None] = lambda what: None,
) -> list[Variant]:
    """Time from pixels to the first logits of every variant; the first two are the full model, eager and compiled.

    `tower` is the vision tower's shape. With `frames`, each row has one video of so many in place of pictures, and the model is a
    Qwen2-VL. With `prepack`, every compiled variant is there with packed weights as well, after all others.
    """
    import lightvlm_fx as lightvlm

    if frames:
        if tower != "toy":
            raise InputError(f"frames={frames} goes with tower='toy' alone: what a tower computes for several frames is not counted")
        from transformers import Qwen2VLForConditionalGeneration

        inputs = video.example(shape, frames, batch, text, device, dtype)
        model = random_weights(Qwen2VLForConditionalGeneration, video.config(shape), device, dtype)
    else:
        model = build(shape, device, dtype, tower)
        inputs = example(model, shape, batch, text, device, dtype)

    def forward(what: Any) -> Callable[[], Any]:
        return lambda: what(**inputs, use_cache=True, logits_to_keep=1)

    variants = [Variant("full model, eager", forward(model), explain(model, "none", inputs))]
    compiled = {"full model, compiled": Schedule.preset("none")} | schedules
    fasts = []
    for packed in (False, True)[: 1 + prepack]:
        for name, schedule in compiled.items():
            fast = lightvlm.compile(model, schedule, backend=backend, prepack=packed)
            fasts.append(fast)
            variants.append(Variant(name + ", packed" * packed, forward(fast), explain(model, schedule, inputs)))
    with torch.inference_mode():
        for variant in variants:
            tell(f"warming up: {variant.name}")
            start = time.perf_counter()
            variant.run()
            synchronise(device)
            variant.first_s = time.perf_counter() - start
            variant.run()
            variant.seconds = []
        for fast, variant in zip(fasts, variants[1:], strict=True):
            bucket = fast.lightvlm.report.of("prefill")[0]
            variant.rewrite_s = bucket.capture_s + bucket.rewrite_s
        for turn in range(repeats):
            tell(f"measuring, turn {turn + 1} of {repeats}")
            for variant in variants:
                synchronise(device)
                start = time.perf_counter()
                variant.run()
                synchronise(device)
                variant.seconds.append(time.perf_counter() - start)
        for variant in variants[2:]:
            tell(f"profiling: {variant.name}")
            variant.reduction_share = reduction_share(variant.run, device)
    return variants


def reduction_share(run: Callable[[], Any], device: str) -> float:
    """Share of a prefill's time inside `lightvlm::` ops but packed products, by torch.profiler."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says on stderr that it begins and ends
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as prof:
        start = time.perf_counter()
        run()
        synchronise(device)
        total = (time.perf_counter() - start) * 1e6
    events = [e for e in prof.events() or () if _reduces(e) and not any(map(_reduces, _callers(e)))]
    return sum(e.device_time_total if cuda else e.cpu_time_total for e in events) / total


def _reduces(event: Any) -> bool:
    return event.name.startswith("lightvlm::") and event.name != "lightvlm::packed_linear"


def _callers(event: Any) -> Iterator[Any]:
    while event := event.cpu_parent:
        yield event


@dataclass(frozen=True)
class Row:
    """One line of the table: ratios first."""

    name: str
    against_compiled: float
    ideal: float
    against_eager: float
    ms: float
    spread: float
    reduction_share: float | None
    rewrite_s: float
    first_s: float

    @property
    def of_ideal(self) -> float:
        return self.against_compiled / self.ideal


def rows(variants: list[Variant]) -> list[Row]:
    """Speed-ups against the full model, eager and compiled, and the FLOP-ideal for each."""
    eager, full = variants[0], variants[1]
    out = []
    for v in variants:
        spread = (max(v.seconds or [0]) - min(v.seconds or [0])) / v.median
        ideal = v.explanation.ideal_from_pixels if v.explanation else 1.0
        out.append(Row(v.name, full.median / v.median, ideal, eager.median / v.median, v.median * 1e3, spread,
                       v.reduction_share, v.rewrite_s, v.first_s))  # fmt: skip
    return out


def machine(device: str) -> str:
    """Hardware and versions, for the head of a table."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), cpu)
    except OSError:
        pass
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"{cpu}, {torch.get_num_threads()} threads"
    return f"{where}; Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
