"""The tiny models' recipes: one file a kin of families, found by itself."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightvlm_fx import zoo
from lightvlm_fx.zoo import families


def test_recipes_of_all_files_are_one_table():
    names = [path.stem for path in Path(families.__file__).parent.glob("[!_]*.py")]
    kins = [import_module(f"{families.__name__}.{name}").FAMILIES for name in names]
    assert all(kins)
    assert sorted(family for kin in kins for family in kin) == sorted(zoo.FAMILIES)


def test_refuses_a_family_that_two_files_have():
    kins = [SimpleNamespace(FAMILIES={"llava": name}, __file__=f"zoo/families/{name}.py") for name in ("first", "second")]
    assert families.collect(kins[:1]) == {"llava": "first"}
    with pytest.raises(ValueError, match=r"recipe of 'llava': zoo/families/first\.py and zoo/families/second\.py"):
        families.collect(kins)
