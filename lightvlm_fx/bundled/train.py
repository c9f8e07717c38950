"""Train the bundled model from nothing: `python -m lightvlm_fx.bundled.train --out DIR [STEP ...]`.

Small steps, because a small decoder that sees pictures from the start stays at chance on questions that
bind a colour to a place:

    tower     the vision tower names what stands in each patch (colour, kind, column, row), then tower and
              projector produce the sum of the decoder's own embeddings of those words
    digits    the same on scenes that are mostly handwritten digits
    decoder   the decoder alone answers questions about symbolic scenes: 16 cell tokens, each such a sum
    describe  the same, mostly long descriptions
    join      both together on pictures
    polish    the same again, more descriptions
    finish    once more, with a smaller step
    hands     once more, on more digits, turned and sheared: the scans are too few to generalise from
    cool      the same with the step size falling to nothing
    average   the mean of what polish, finish and cool left
    settle    from that, longer, on digits bent less; what is saved is a running mean of the weights
    detail    the same, mostly long descriptions of full scenes

The first two and the next two share nothing but the frozen word embeddings and can run in two processes.
Questions of one scene are packed after one picture: each sees the picture and itself only, at the
positions it would have alone (`packed_mask`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlavaForConditionalGeneration

from lightvlm_fx.bundled import scenes
from lightvlm_fx.bundled.build import PATCH, VOCAB, build_model, build_processor
from lightvlm_fx.bundled.scenes import CELL, GRID, KINDS, SIZE, Scene, ask, render, sample_scene

SEED = 20261120
SIDE = SIZE // PATCH
N_VISUAL = SIDE * SIDE
SHORT_KINDS = tuple(k for k in KINDS if k != "describe")
CELL_OF_PATCH = torch.tensor(
    [(i // SIDE * PATCH // CELL) * GRID + i % SIDE * PATCH // CELL for i in range(N_VISUAL)]
)
CENTRE_OF_CELL = torch.tensor([(3 * (c // GRID) + 1) * SIDE + 3 * (c % GRID) + 1 for c in range(GRID * GRID)])
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def ids(text: str) -> list[int]:
    return [VOCAB[w] for w in text.split()]


def fresh_model() -> LlavaForConditionalGeneration:
    torch.manual_seed(SEED)
    model = build_model()
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        words.normal_(0, 0.1)
    words.requires_grad_(False)
    return model


def pictures(batch: list[Scene], rng: np.random.Generator, **options: float) -> Tensor:
    """Normalised pixel values [B, 3, 96, 96]; `options` go to `render`."""
    stack = np.stack([render(s, rng, **options) for s in batch])
    return (torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def cell_words(batch: list[Scene]) -> Tensor:
    """Word ids of each cell [B, 16, 4], padded with <pad>."""
    pad = VOCAB["<pad>"]
    rows = [[[VOCAB[w] for w in words] + [pad] * (4 - len(words)) for words in s.cells()] for s in batch]
    return torch.tensor(rows)


def word_sums(words: Tensor, table: Tensor) -> Tensor:
    """Sum of the embeddings of `words` [..., 4], padding left out: [..., D]."""
    return (table[words] * (words != VOCAB["<pad>"]).unsqueeze(-1)).sum(-2)


def pack(batch: list[Scene], rng: np.random.Generator, kinds: tuple[str, ...], per_scene: int, chat: bool):
    """Question blocks of each scene in one row.

    Returns token ids [B, T], block numbers [B, T] (-1 for padding), positions in the block's own prompt
    [B, T], and labels [B, T] (-100 but for answers). With `chat`, the blocks are turns of one dialogue.
    """
    rows = []
    for scene in batch:
        tokens: list[int] = []
        block: list[int] = []
        place: list[int] = []
        label: list[int] = []
        for b in range(per_scene):
            q = ask(scene, kinds[(b + int(rng.integers(len(kinds)))) % len(kinds)], rng)
            if q is None:
                continue
            prompt = [VOCAB["<user>"]] * (chat and b > 0) + ids(q.text) + [VOCAB["<assistant>"]]
            answer = [*ids(q.answer), VOCAB["<eos>"]]
            start = len(tokens) if chat else 0
            tokens += prompt + answer
            label += [-100] * len(prompt) + answer
            block += [0 if chat else b] * (len(prompt) + len(answer))
            place += range(start, start + len(prompt) + len(answer))
        rows.append((tokens, block, place, label))
    width = max(len(r[0]) for r in rows)
    fill = (VOCAB["<pad>"], -1, 0, -100)
    return [torch.tensor([r[i] + [fill[i]] * (width - len(r[i])) for r in rows]) for i in range(4)]


def packed_mask(prefix: int, block: Tensor) -> Tensor:
    """Boolean [B, 1, P+T, P+T]: causal, and across blocks only towards the prefix."""
    whole = torch.cat([torch.full((len(block), prefix), -2), block], 1)
    same = (whole[:, :, None] == whole[:, None, :]) | (whole[:, None, :] == -2)
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril()).unsqueeze(1)


def answer_loss(model, visual: Tensor, visual_at: Tensor, packed: list[Tensor]):
    """Cross entropy on answer tokens after the visual tokens [B, N, D]; also token accuracy."""
    tokens, block, place, label = packed
    table = model.get_input_embeddings()
    user = table(torch.full((len(tokens), 1), VOCAB["<user>"]))
    embeds = torch.cat([user, visual, table(tokens)], 1)
    prefix = 1 + visual.shape[1]
    at = torch.cat([torch.zeros(1, dtype=torch.long), 1 + visual_at]).expand(len(tokens), -1)
    positions = torch.cat([at, 1 + N_VISUAL + place], 1)
    mask = torch.zeros(len(tokens), 1, embeds.shape[1], embeds.shape[1])
    mask = mask.masked_fill(~packed_mask(prefix, block), torch.finfo(torch.float32).min)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask.bfloat16(), position_ids=positions, use_cache=False
        ).last_hidden_state
        want = label[:, 1:] != -100
        logits = model.lm_head(hidden[:, prefix:-1][want]).float()
    target = label[:, 1:][want]
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()


class Log:
    """Running means, printed every `every` steps."""

    def __init__(self, name: str, every: int) -> None:
        self.name, self.every, self.start = name, every, time.time()
        self.sums: dict[str, list[float]] = defaultdict(list)

    def __call__(self, step: int, **values: Tensor) -> None:
        for key, value in values.items():
            self.sums[key].append(float(value.detach()))
        if step % self.every == 0:
            means = "  ".join(f"{k} {np.mean(v):.4f}" for k, v in self.sums.items())
            print(f"{self.name} {step:5d}  {means}  {time.time() - self.start:.0f} s", flush=True)
            self.sums.clear()


def optimiser(params, lr: float, steps: int, warmup: int = 100):
    opt = torch.optim.AdamW(params, lr, betas=(0.9, 0.98), weight_decay=0.02)

    def scale(step: int) -> float:
        tail = (step - warmup) / max(1, steps - warmup)
        return min(1.0, step / warmup) * (1.0 if tail < 0.5 else 0.05 + 0.95 * (1 - tail) / 0.5)

    return opt, torch.optim.lr_scheduler.LambdaLR(opt, scale)


def update(opt, schedule, loss: Tensor, params) -> None:
    opt.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(params, 1.0)
    opt.step()
    schedule.step()


def visual_tokens(model, pixels: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.stack(list(model.get_image_features(pixels).pooler_output)).float()


def train_tower(out: Path, steps: int) -> None:
    """Patch labels first (a quarter of the steps also regress), then the sum of word embeddings."""
    model, rng = fresh_model(), np.random.default_rng(SEED + 1)
    table = model.get_input_embeddings().weight.detach()
    read = nn.Linear(model.config.vision_config.hidden_size, len(VOCAB))
    parts = [model.model.vision_tower, model.model.multi_modal_projector, read]
    params = [p for m in parts for p in m.parameters()]
    opt, schedule = optimiser(params, 1e-3, steps)
    log = Log("tower", 50)
    kinds = torch.tensor([VOCAB[w] for w in (*scenes.SHAPES, *scenes.DIGITS, "empty")])
    colours = torch.tensor([VOCAB[w] for w in scenes.COLOURS])
    for step in range(1, steps + 1):
        batch = [sample_scene(rng) for _ in range(32)]
        words = cell_words(batch)[:, CELL_OF_PATCH]
        with torch.autocast("cpu", torch.bfloat16):
            features = model.model.vision_tower(pictures(batch, rng), output_hidden_states=True)
            features = features.hidden_states[-1][:, 1:]
            guess = read(features).float()
        named = torch.zeros_like(guess).scatter_(-1, words, 1.0)
        named[..., VOCAB["<pad>"]] = 0
        name = F.binary_cross_entropy_with_logits(guess, named) * 20
        with torch.autocast("cpu", torch.bfloat16):
            made = model.model.multi_modal_projector(features)
        wanted = word_sums(words, table)
        error = (made.float() - wanted).square().mean() / wanted.square().mean()
        update(opt, schedule, name * max(0.0, 1 - 2 * step / steps) + error, params)
        if step % 10 == 0:
            kind = kinds[guess[..., kinds].argmax(-1)]
            right = (words == kind.unsqueeze(-1)).any(-1).float().mean()
            full = words[..., 3] != VOCAB["<pad>"]
            colour = colours[guess[..., colours].argmax(-1)]
            log(step, name=name, error=error, kind=right, colour=(words[..., 0] == colour)[full].float().mean())
    torch.save({k: m.state_dict() for k, m in zip(("tower", "projector"), parts, strict=False)}, out / "tower.pt")


def train_digits(out: Path, steps: int) -> None:
    """Sum of word embeddings again, with a choice among the kinds' embeddings, on mostly digits."""
    model, rng = fresh_model(), np.random.default_rng(SEED + 4)
    _load_tower(model, out / "tower.pt")
    table = model.get_input_embeddings().weight.detach()
    parts = {"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector}
    params = [p for m in parts.values() for p in m.parameters()]
    opt, schedule = optimiser(params, 8e-4, steps)
    log = Log("digits", 50)
    kinds = torch.tensor([VOCAB[w] for w in (*scenes.SHAPES, *scenes.DIGITS)])
    for step in range(1, steps + 1):
        batch = [sample_scene(rng, 12, digits=0.75) for _ in range(32)]
        words = cell_words(batch)[:, CELL_OF_PATCH]
        made = visual_tokens(model, pictures(batch, rng))
        wanted = word_sums(words, table)
        error = (made - wanted).square().mean() / wanted.square().mean()
        full = words[..., 3] != VOCAB["<pad>"]
        logits, target = 8 * made[full] @ table[kinds].T, (words[full][:, 1:2] == kinds).float().argmax(-1)
        choice = F.cross_entropy(logits, target)
        update(opt, schedule, error + 0.3 * choice, params)
        log(step, error=error, choice=choice, kind=(logits.argmax(-1) == target).float().mean())
        if step % 200 == 0 or step == steps:
            torch.save({k: m.state_dict() for k, m in parts.items()}, out / "digits.pt")


def _load_tower(model, path: Path) -> None:
    saved = torch.load(path)
    model.model.vision_tower.load_state_dict(saved["tower"])
    model.model.multi_modal_projector.load_state_dict(saved["projector"])


def train_decoder(out: Path, steps: int) -> None:
    _train_symbolic(out / "decoder.pt", fresh_model(), SEED + 2, steps, 1.5e-3, 24, lambda step: step % 8 == 0, 0.3)


def train_describe(out: Path, steps: int) -> None:
    model = fresh_model()
    model.load_state_dict(torch.load(out / "decoder.pt"))
    _train_symbolic(out / "describe.pt", model, SEED + 5, steps, 1e-3, 40, lambda step: step % 4 != 0, 1.0)


def _train_symbolic(path: Path, model, seed: int, steps: int, lr: float, long_rows: int, is_long, early: float) -> None:
    """Questions, and descriptions at the steps that `is_long` names, about scenes of 16 cell tokens.

    Descriptions weigh `early` in the loss for the first 60 % of the steps, so that binding comes first.
    """
    rng = np.random.default_rng(seed)
    table = model.get_input_embeddings().weight.detach()
    params = [*model.model.language_model.layers.parameters(), *model.model.language_model.norm.parameters()]
    params += [*model.lm_head.parameters()]
    opt, schedule = optimiser(params, lr, steps)
    log = Log(path.stem, 50)
    for step in range(1, steps + 1):
        long = is_long(step)
        batch = [sample_scene(rng) for _ in range(long_rows if long else 64)]
        visual = word_sums(cell_words(batch), table)
        visual = visual + torch.randn_like(visual) * 0.01
        packed = pack(batch, rng, ("describe",) if long else SHORT_KINDS, 1 if long else 10, chat=False)
        loss, right = answer_loss(model, visual, CENTRE_OF_CELL, packed)
        update(opt, schedule, loss * (early if long and step < steps * 0.6 else 1.0), params)
        log(step, **({"long_loss": loss, "long": right} if long else {"loss": loss, "right": right}))
        if step % 200 == 0 or step == steps:
            torch.save(model.state_dict(), path)


def train_join(out: Path, steps: int) -> None:
    model = fresh_model()
    model.load_state_dict(torch.load(out / "describe.pt"))
    _load_tower(model, out / "digits.pt")
    _train_pictures(out, "join", model, SEED + 3, steps, 4e-4, lambda step: step % 2 == 0)


def train_polish(out: Path, steps: int) -> None:
    model = fresh_model()
    model.load_state_dict(torch.load(out / "join.pt"))
    _train_pictures(out, "polish", model, SEED + 6, steps, 5e-4, lambda step: step % 3 != 0)


def train_finish(out: Path, steps: int) -> None:
    model = fresh_model()
    model.load_state_dict(torch.load(out / "polish.pt"))
    _train_pictures(out, "finish", model, SEED + 7, steps, 3.5e-4, lambda step: step % 3 != 0)


def train_hands(out: Path, steps: int) -> None:
    model = fresh_model()
    model.load_state_dict(torch.load(out / "finish.pt"))
    _train_pictures(out, "hands", model, SEED + 8, steps, 4e-4, lambda step: step % 2 == 0, digits=0.6, warp=1.0, horizon=600)


def train_cool(out: Path, steps: int) -> None:
    model = fresh_model()
    model.load_state_dict(torch.load(out / "hands.pt"))
    _train_pictures(out, "cool", model, SEED + 9, steps, 4e-4, lambda step: step % 2 == 0, digits=0.5, warp=1.0)


def average(out: Path, steps: int) -> None:
    """The model in the box: the mean of the last three checkpoints, better than each on a seed kept for choosing."""
    states = [torch.load(out / f"{name}.pt") for name in ("polish", "finish", "cool")]
    model = fresh_model()
    model.load_state_dict({key: sum(state[key] for state in states) / len(states) for key in states[0]})
    save(model, out / "model")


def train_settle(out: Path, steps: int) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(out / "model", dtype=torch.float32)
    model.get_input_embeddings().weight.requires_grad_(False)
    _train_pictures(out, "settle", model, SEED + 10, steps, 3e-4, lambda step: step % 2 == 0, digits=0.5, warp=0.5, mean=0.995)


def train_detail(out: Path, steps: int) -> None:
    model = fresh_model()
    model.load_state_dict(torch.load(out / "settle.pt"))
    _train_pictures(out, "detail", model, SEED + 11, steps, 3e-4, lambda step: step % 3 != 0, warp=0.3, mean=0.995, fewest=6)


def _train_pictures(
    out: Path, name: str, model, seed: int, steps: int, lr: float, is_long, *,
    digits: float = 0.35, warp: float = 0.0, horizon: int | None = None, mean: float = 0.0, fewest: int = 4,
) -> None:  # fmt: skip
    """Questions (half of them as turns of one dialogue) and descriptions (of `fewest` things or more) about pictures.

    The step size falls towards `horizon` updates (default: `steps`). With `mean`, what is saved is the running
    mean of the weights that decays by it at every update.
    """
    rng, shorts = np.random.default_rng(seed), 0
    params = [p for p in model.parameters() if p.requires_grad]
    opt, schedule = optimiser(params, lr, horizon or steps, warmup=20)
    log = Log(name, 20)
    saved = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(mean)) if mean else None
    for step in range(1, steps + 1):
        long = is_long(step)
        shorts += not long
        chat = not long and shorts % 2 == 1
        batch = [sample_scene(rng, int(rng.integers(fewest, 9)) if long else None, digits) for _ in range(24)]
        visual = visual_tokens(model, pictures(batch, rng, warp=warp))
        packed = pack(batch, rng, ("describe",) if long else SHORT_KINDS, 1 if long else 10, chat=chat)
        loss, right = answer_loss(model, visual, torch.arange(N_VISUAL), packed)
        update(opt, schedule, loss, params)
        if saved is not None:
            saved.update_parameters(model)
        log(step, **({"long_loss": loss, "long": right} if long else {"loss": loss, "right": right}))
        if step % 100 == 0 or step == steps:
            kept = model if saved is None else saved.module
            torch.save(kept.state_dict(), out / f"{name}.pt")
            save(kept, out / "model")


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write fp16 safetensors, configs, tokenizer and processor."""
    import copy

    half = copy.deepcopy(model).half()
    half.generation_config.max_new_tokens = 128
    half.generation_config.do_sample = False
    half.save_pretrained(folder)
    build_processor().save_pretrained(folder)


STEPS = {
    "tower": (train_tower, 2200),
    "digits": (train_digits, 2000),
    "decoder": (train_decoder, 2000),
    "describe": (train_describe, 1300),
    "join": (train_join, 800),
    "polish": (train_polish, 900),
    "finish": (train_finish, 600),
    "hands": (train_hands, 200),
    "cool": (train_cool, 160),
    "average": (average, 0),
    "settle": (train_settle, 1500),
    "detail": (train_detail, 800),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="*", choices=[*STEPS, []], help="steps to run (default: all, in order)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--steps", type=int, help="updates of each step named (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.step or STEPS:
        run, steps = STEPS[name]
        started = time.time()
        run(args.out, args.steps or steps)
        print(json.dumps({"step": name, "seconds": round(time.time() - started)}), flush=True)


if __name__ == "__main__":
    main()
