import pytest

from phf_ray.config import parse_config
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.stats import CorpusStats, ScorerStats
from phf_ray.errors import ConfigError
from phf_ray.training.value_range import check_value_range

AWR = {"objective": {"name": "AWR"}, "model": {"model_kwargs": {"value_head_config": {"is_detached": False}}}}


def manifest_of(scores):
    stats = ScorerStats()
    stats.add([(scores, [None] * len(scores))])
    return CorpusManifest((), "lines", CorpusStats(scorers={"scores": stats}), "hash")


def check(values, *corpora):
    check_value_range(parse_config(values), manifests=[manifest_of(scores) for scores in corpora])


@pytest.mark.parametrize(("bad", "shown"), [(-0.5, "-0.5 to 1"), (1.0625, "0 to 1.062")])
def test_awr_refuses_scores_that_a_value_cannot_equal(bad, shown):
    with pytest.raises(ConfigError, match=rf"1 of 4 segments score outside \[0, 1\] \({shown}\).*name: RWR"):
        check(AWR, [0.0, 1.0], [bad, 0.5])
    check(AWR, [0.0, 1.0], [0.5])


def test_only_awr_with_a_value_head_and_without_compat_refuses_them():
    for values in (
        {"objective": {"name": "RWR"}},
        AWR | {"objective": {"name": "AWR", "fixed_value": -3.0}},
        AWR | {"compat": "korbak2023"},
    ):
        check(values, [-2.0, 7.0])


def test_a_few_segments_outside_are_only_warned_of(caplog):
    check(AWR, [1.5, *[0.0] * 999])
    assert "1 of 1,000 segments score outside [0, 1] (0 to 1.5)" in caplog.text
    with pytest.raises(ConfigError, match="2 of 1,000"):
        check(AWR, [1.5, 1.5, *[0.0] * 998])
