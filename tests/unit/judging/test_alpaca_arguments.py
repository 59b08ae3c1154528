import pytest
from places import ROOT

from phf_ray.errors import ConfigError
from phf_ray.judging import PairwiseAutoAnnotator
from phf_ray.judging.alpaca_arguments import REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_without_a_meaning_is_refused_with_what_stands_in_for_it(name):
    for value in (None, 3):
        with pytest.raises(ConfigError) as caught:
            PairwiseAutoAnnotator("offline", **{name: value})
        assert f"{name}: {REFUSED[name]}" in str(caught.value)


def test_the_guide_has_all_of_them():
    guide = (ROOT / "docs" / "judge.md").read_text(encoding="utf-8")
    assert [name for name in REFUSED if f"`{name}`" not in guide] == []
