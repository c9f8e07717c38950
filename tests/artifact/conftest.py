"""Artifacts of tiny models, each exported once a run for all workers."""

import os

import pytest
from artifacts import CUTS, ROOM, bounded_model, copied, once, with_picture, write_bounded

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A folder that all workers of this run see."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "artifacts"


@pytest.fixture(scope="session")
def bounded(shelf):
    """Tiny LLaVA, two rows, cuts and a bounded cache. Shared: leave it as it is."""
    return once(shelf, "bounded", write_bounded)


@pytest.fixture(scope="session")
def tiny():
    """The model that `bounded` was made from."""
    return bounded_model()


@pytest.fixture
def broken(bounded, tmp_path):
    """A copy of `bounded` to break."""
    return copied(bounded, tmp_path / "broken")


@pytest.fixture(scope="session")
def sized():
    """The tiny Qwen2.5-VL with pictures of 4 x 4 patches (4 tokens) and of 6 x 8 (12 tokens)."""
    large = zoo.build("qwen2_5_vl", layers=2)
    return with_picture(large, 4, 4), large


@pytest.fixture(scope="session")
def sizes(shelf, sized):
    """Its artifact of two buckets: one row of a small picture in 24 tokens, two rows of a large one in 40. Shared."""
    small, large = sized

    def write(folder):
        examples = [small.inputs(text=(9,), images=(1,)), large.inputs(text=(9, 9), images=(1, 1))]
        lightvlm.export(large.model, CUTS, folder, inputs=examples, prompt_tokens=(24, 40), new_tokens=ROOM)

    return once(shelf, "sizes", write)
