"""Sites, and a family's defaults against those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from q8core.model.families import FAMILIES
from q8core.model.sites import sites


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_defaults_are_those_of_transformers(family: Any) -> None:
    theirs = CONFIG_MAPPING[family.model_type]().to_dict()
    assert dict(family.defaults) == {name: theirs[name] for name in family.defaults}
    assert {name: value for name, value in family.fixed.items() if theirs.get(name, value) != value} == {}


def test_sites_of_one_path_are_one() -> None:
    family = FAMILIES["bert"]
    found = sites(family.spec(family.defaults), family.head("classify", 2))
    assert len({site.path for site in found}) == len(found)
