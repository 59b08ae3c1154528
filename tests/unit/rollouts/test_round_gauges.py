"""What a run of rounds shows in Ray's metrics. Ray's gauges record nothing without a Ray, so their calls are kept."""

import pytest
from ray.util.metrics import Gauge

from phf_ray.rollouts.on_ray.metrics import RoundGauges
from phf_ray.runs.rows import ROUND


@pytest.fixture
def shown(monkeypatch):
    found = {}

    def keep(self, value, tags=None):
        if value is not None:
            found[self.info["name"], tags["run"]] = value

    monkeypatch.setattr(Gauge, "set", keep)
    return found


def test_gauges_show_the_newest_round_and_no_figure_that_it_lacks(shown):
    gauges = RoundGauges("rloo", 80)
    row = {"step": 1, ROUND: 0, "reward": -1.5, "kl": 0.0, "completions/mean_length": 12.0, "rollouts/failed": 3.0}
    gauges(row)
    gauges({"step": 1, "train/loss": 0.5, "reward": 99.0})
    assert shown == {
        ("phf_rounds", "rloo"): 80,
        ("phf_rounds_drawn", "rloo"): 1,
        ("phf_round_reward", "rloo"): -1.5,
        ("phf_round_kl", "rloo"): 0.0,
        ("phf_round_answer_tokens", "rloo"): 12.0,
        ("phf_round_failed_answers", "rloo"): 3.0,
    }
    gauges({**row, ROUND: 1, "reward": -1.0, "rollouts/gold": 2.0})
    assert shown["phf_rounds_drawn", "rloo"] == 2
    assert (shown["phf_round_reward", "rloo"], shown["phf_round_gold", "rloo"]) == (-1.0, 2.0)
