"""What tests of methods share: a plain eager decoder, layer by layer, in which a rule says what becomes of visual tokens at a cut.

It runs one row without padding, calls transformers' own layers, and shares no code with the passes.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional as F

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.model.layout import Placeholders
from lightvlm_fx.model.locate import visual_ids
from lightvlm_fx.spans import images_of
from lightvlm_fx.support import answer

FAMILIES = ("llava", "internvl", "qwen2_5_vl")  # plain positions; pixel shuffle; M-RoPE and windows
CASES = {"one picture": ((9,), (1,)), "two pictures and a ragged batch": ((7, 9), (2, 1)), "text beside a picture": ((9, 6), (0, 1))}
ALONE = 1e-4  # of the largest logit: the same row, alone or padded
NEW = 3


@cache
def tiny(family):
    return zoo.build(family, layers=4)


@cache
def unreduced(family):
    return lightvlm.compile(tiny(family).model, "none", backend="eager")


@dataclass
class Seen:
    """What a rule may look at before decoder layer `layer`, of one row of n tokens."""

    model: torch.nn.Module
    layer: int
    hidden: torch.Tensor  # [n, D]
    previous: torch.Tensor | None  # [n, D], before the layer that precedes the cut
    embeds: torch.Tensor  # [n, D]: the hidden state of the same tokens before layer 0
    positions: torch.Tensor  # [n] or [3, n]
    spans: list[torch.Tensor]  # places of each image's tokens that are left
    sizes: list[int]  # tokens that each image had
    grids: list[tuple[int, int]]  # rows and columns that each image had
    inputs: dict  # of the model

    @property
    def images(self):
        """Hidden states [m, D] of each image."""
        return [self.hidden[span] for span in self.spans]

    @property
    def text(self):
        """Boolean [n]."""
        out = torch.ones(len(self.hidden), dtype=torch.bool)
        for span in self.spans:
            out[span] = False
        return out

    def attention(self, layer=None, rope=True):
        """Queries [H, n, d], keys [H, n, d] (repeated to H heads) and values of the layer before the cut, or of `layer`."""
        at = self.layer - 1 if layer is None else layer
        decoder = self.model.get_decoder()
        block = decoder.layers[at]
        x = block.input_layernorm(self.previous if layer is None else self.hidden)[None]
        own = block.self_attn
        q, k, v = (getattr(own, f"{name}_proj")(x).view(1, x.shape[1], -1, own.head_dim).transpose(1, 2) for name in "qkv")
        if rope:
            cos, sin = decoder.rotary_emb(x, self.positions.unsqueeze(-2))
            q, k = rotated(self.model, q, k, cos, sin)
        groups = q.shape[1] // k.shape[1]
        return q[0], k[0].repeat_interleave(groups, 0), v[0].repeat_interleave(groups, 0)


def rotated(model, q, k, cos, sin):
    if cos.ndim == 4:  # M-RoPE: sections of the head take their turns among time, height and width
        section = model.config.get_text_config().rope_parameters["mrope_section"] * 2
        cos, sin = (torch.cat([part[i % 3] for i, part in enumerate(x.split(section, -1))], -1) for x in (cos, sin))

    def half(x):
        a, b = x.chunk(2, -1)
        return torch.cat([-b, a], -1)

    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + half(q) * sin, k * cos + half(k) * sin


def last_query(seen, rope=True, over_images=True, layer=None):
    """Of each image, the attention [m] that the last token pays it, mean over heads."""
    q, k, _ = seen.attention(layer, rope)
    logits = (q[:, -1:] @ k.transpose(1, 2)).squeeze(1).float() * q.shape[-1] ** -0.5
    if over_images:
        logits = logits.masked_fill(seen.text, -torch.inf)
    scores = logits.softmax(-1).mean(0)
    return [scores[span] for span in seen.spans]


def log_sum_exp(seen, both_ways=False):
    """Of each image, per token, over the keys that it sees (`both_ways`: of the whole prompt), mean over heads."""
    q, k, _ = seen.attention()
    logits = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
    blind = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    scores = (logits if both_ways else logits.masked_fill(blind, -torch.inf)).logsumexp(-1).mean(0)
    return [scores[span] for span in seen.spans]


def absorbed(scores, hidden, budget, share, group):
    """The best P stay, the next ones are centres, each half itself and half of the dropped tokens most like it."""
    sound = max((p for p in range(budget + 1) if p + max(1, int(share * p)) <= budget), default=0)
    order = scores.argsort(descending=True, stable=True).tolist()
    dropped, new = order[budget:], hidden.clone()
    for centre in order[sound:budget] if dropped else []:
        products = hidden[dropped] @ hidden[centre]
        most = products.topk(min(group, len(dropped)))
        joined = (most.values / hidden.shape[1] ** 0.5).softmax(0) @ hidden[dropped][most.indices]
        new[centre] = (hidden[centre] + joined) / 2
    kept = sorted(order[:budget])
    return kept, new[kept]


def row_inputs(family, case, row):
    text, images = CASES[case]
    return tiny(family).inputs(text=(text[row],), images=(images[row],), seed=row)


@torch.no_grad()
def reference_logits(family, inputs, rules, renumber=()):
    """Logits [V] after the prompt. `rules`: by layer, a function of `Seen` to the places within each image that stay, rising, or to
    pairs of those and their new hidden states [m, D]. At the layers `renumber`, plain positions are counted anew.
    """
    model = tiny(family).model
    decoder, seen = model.get_decoder(), {}
    hook = decoder.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    model(**inputs)
    hook.remove()
    hidden = seen["inputs_embeds"][0]
    n = len(hidden)
    positions = seen.get("position_ids")
    positions = torch.arange(n) if positions is None else positions[..., 0, :][-3:] if positions.ndim == 3 else positions[0]
    if positions.ndim == 1 and "mrope_section" in (getattr(model.config.get_text_config(), "rope_parameters", None) or {}):
        positions = positions.expand(3, -1)  # older transformers number text alone once
    ids = inputs["input_ids"][0].numpy()
    spans = [torch.from_numpy(span) for span in images_of(ids, Placeholders.of(model))]
    assert set(inputs["input_ids"][0].tolist()) & set(visual_ids(model)) or not spans
    sizes, embeds, previous = [len(span) for span in spans], hidden, None
    grids = grids_of(inputs, sizes, model)
    for at, layer in enumerate(decoder.layers):
        if at in rules and spans:
            told = rules[at](Seen(model, at, hidden, previous, embeds, positions, spans, sizes, grids, inputs))
            stays, hidden = torch.ones(n, dtype=torch.bool), hidden.clone()
            for span, one in zip(spans, told, strict=True):
                kept, new = one if isinstance(one, tuple) else (one, None)
                stays[span] = False
                stays[span[list(kept)]] = True
                if new is not None:
                    hidden[span[list(kept)]] = new
            index = stays.nonzero().squeeze(1)
            place = torch.full((n,), -1)
            place[index] = torch.arange(len(index))
            spans = [place[span][place[span] >= 0] for span in spans]
            hidden, embeds, n = hidden[index], embeds[index], len(index)
            positions = torch.arange(n) if at in renumber and positions.ndim == 1 else positions[..., index]
        previous = hidden
        turned = decoder.rotary_emb(hidden[None], positions.unsqueeze(-2))
        out = layer(hidden[None], attention_mask=None, position_ids=positions.unsqueeze(-2), position_embeddings=turned)
        hidden = (out[0] if isinstance(out, tuple) else out)[0]
    return model.get_output_embeddings()(decoder.norm(hidden[None]))[0, -1].float()


def grids_of(inputs, sizes, model):
    if "image_grid_thw" in inputs:
        merge = model.config.vision_config.spatial_merge_size
        return [(h // merge, w // merge) for _, h, w in inputs["image_grid_thw"].tolist()]
    return [(int(n**0.5), int(n**0.5)) for n in sizes]


def run_reference(family, case, schedule, rules, bound, renumber=(0,)):
    """Assert that the compiled model agrees with the reference on every row of the case alone, and with itself on the batch."""
    fast = unreduced(family).lightvlm.with_schedule(schedule)
    text, images = CASES[case]
    together = answer(fast, tiny(family).inputs(text=text, images=images), NEW)
    for row in range(len(text)):
        inputs = row_inputs(family, case, row)
        alone = answer(fast, inputs, NEW)
        wanted = reference_logits(family, inputs, rules, renumber)
        apart = float((alone.logits[0][0].float() - wanted).abs().max() / wanted.abs().max())
        assert apart <= bound, f"row {row}: the compiled model is apart from the reference by {apart:.1e} of the largest logit"
        beside = torch.stack([x[row] for x in together.logits]), torch.stack([x[0] for x in alone.logits])
        assert float((beside[0] - beside[1]).abs().max() / beside[1].abs().max()) <= ALONE, f"row {row} depends on the row beside it"


def unit(x):
    return F.normalize(x.float(), dim=-1)

