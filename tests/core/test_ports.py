"""The inputs that passes add to graphs."""

import re
from pathlib import Path

import pytest
import torch

from lightvlm_fx.graph import ports
from lightvlm_fx.graph.ports import PORTS, port_of

GLOSSARY = Path("docs/glossary.md").read_text(encoding="utf-8").partition("## Letters in shapes")[2]
OWN = {"Q", "T", "E"}  # new tokens of a step; text tokens and entries of a graph


def test_every_name_leads_to_its_port():
    assert all(port_of(port.at(7) if port.each else name) == (port, "7" if port.each else "") for name, port in PORTS.items())
    for other in ("inputs_embeds", "visual_embeds_0", "stay", "keys_", "visual_segment_0", "attention_mask_full_attention"):
        assert port_of(other) == (None, "")


def test_letters_are_those_of_the_glossary():
    for port in PORTS.values():
        letters = set(re.findall(r"[A-Za-z]", port.shape)) - OWN
        assert all(re.search(rf"\b{letter}\b", GLOSSARY) for letter in letters), port


def test_a_program_takes_only_what_a_port_says(prefill):
    segment = torch.empty(1, 8, dtype=torch.int64)
    with pytest.raises(AssertionError, match=r"kv_count is \[B, L\], got 1 dimensions"):
        prefill.add_input(ports.KV_COUNT, segment[0])
    with pytest.raises(AssertionError, match="kv_count is int64"):
        prefill.add_input(ports.KV_COUNT, segment.float())
    with pytest.raises(AssertionError, match="visual_segment is a single input"):
        prefill.add_input(ports.SEGMENT, segment, 0)
    with pytest.raises(AssertionError, match="stay is one for each cut"):
        prefill.add_input(ports.STAY, segment[0])
