"""The CPU time of a request to `/v1/scores` is counted where it is spent."""

from benchmarks import bench_scores_path


def test_scoring_is_counted_in_the_scorers_own_process(monkeypatch):
    monkeypatch.setattr(bench_scores_path, "BATCH", 16)
    found = bench_scores_path.bench("PEP8Scorer", num_pairs=2)
    assert found["scoring_ms"] > 0, "the child's CPU time"
    assert found["replica_ms"] > 0, "handing the texts on"
    assert found["lowest"] <= found["ratio"] <= found["highest"]
