"""What the model is fed, decoded and scored again."""

import numpy as np
import pytest
from tiny_models import GOOD, tiny_tokenizer

from phf_ray.blocks.packing import pack
from phf_ray.blocks.settings import ConditionalTraining, PackingConfig
from phf_ray.config import parse_config
from phf_ray.records import ScoredDocument, TokenKind
from phf_ray.training.inspection import MAX_SPANS, SPAN_TOKENS, Inspector, cosine_and_norms, cut_spans, inspect

METRICS = {"metrics_configs": [{"class_name": "Length"}, {"class_name": "NGramStats", "n": 1}]}
TEXTS = ("x = 1\n", "y = 2;\n")


def document(number: int = 0) -> ScoredDocument:
    return ScoredDocument(f"{number:032x}", TEXTS, (0.0, 0.25), (None, None))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(control=True)


def spans_of(documents, tokenizer, *, length=64, values=False):
    packing = PackingConfig(conditional=ConditionalTraining(threshold=0.0))
    blocks = list(pack(documents, tokenizer, sequence_length=length, config=packing))
    ids, kinds, scores = (
        np.stack([getattr(block, name) for block in blocks]) for name in ("input_ids", "token_kinds", "token_scores")
    )
    return cut_spans(ids.astype(np.int64), kinds, scores, np.full(ids.shape, -0.5, np.float32) if values else None)


def score(texts):
    return [float(text.count(";")) for text in texts]


def test_a_span_runs_from_an_end_of_text_token_for_128_tokens_or_to_the_end_of_the_block(tokenizer):
    spans = spans_of([document(number) for number in range(30)], tokenizer, length=256)
    assert all(span.kinds[0] == TokenKind.END_OF_TEXT for span in spans)
    assert max(len(span.ids) for span in spans) == SPAN_TOKENS
    assert min(len(span.ids) for span in spans) < SPAN_TOKENS
    assert not any((span.kinds == TokenKind.PAD).any() for span in spans)
    assert len(spans) == min(30, MAX_SPANS)


def test_text_is_decoded_scored_again_and_measured(tokenizer):
    (span,) = spans_of([document()], tokenizer, values=True)
    figures = inspect([span], tokenizer=tokenizer, config=parse_config({"generation": METRICS}), score=score)
    text = "".join(TEXTS)
    assert figures["debugging/segments"]["rows"] == [[text, 1.0]]
    assert (figures["debugging/score"], figures["debugging/score_std"]) == (1.0, 0.0)
    assert figures["debugging/num_segments"] == 1
    assert figures["debugging/length"] == len(text)
    assert figures["debugging/distinct-1-grams"] == pytest.approx(5 / 6)
    content = span.scores[span.kinds == TokenKind.CONTENT]
    assert figures["debugging/raw_token_scores_avg"] == pytest.approx(content.mean())
    assert 0 < figures["debugging/raw_token_scores_avg"] < 0.25
    assert figures["debugging/raw_token_scores_std"] == pytest.approx(content.std())
    ((raw, rewards, values),) = figures["debugging/raw_text"]["rows"]
    assert raw.count(GOOD) == 1
    assert min(rewards) == -0.25
    assert values == [-0.5] * len(rewards)


def test_without_a_scorer_or_a_value_head_nothing_is_made_up(tokenizer):
    spans = spans_of([document()], tokenizer)
    figures = inspect(spans, tokenizer=tokenizer, config=parse_config({}), score=None)
    assert "debugging/score" not in figures
    assert figures["debugging/raw_text"]["rows"][0][2] is None
    assert inspect([], tokenizer=tokenizer, config=parse_config({}), score=score) == {"debugging/num_segments": 0}


def test_norms_and_cosine_of_the_control_tokens():
    rows = {"<|a|>": np.array([3.0, 4.0], np.float32), "<|b|>": np.array([4.0, 3.0], np.float32)}
    figures = cosine_and_norms(rows)
    assert figures["debugging/<|a|>_norm"] == figures["debugging/<|b|>_norm"] == 5
    assert figures["debugging/control_tokens_similarity"] == pytest.approx(24 / 25)


def test_the_inspector_scores_in_a_process_of_its_own_and_gives_rows_once(tokenizer):
    inspector = Inspector(parse_config({"scoring": {"scorers": [{"class_name": "PEP8Scorer"}]}}), tokenizer)
    inspector.submit(spans_of([document()], tokenizer), counters={"train/global_step": 7})
    (row,) = inspector.finished(wait=True)
    assert row["train/global_step"] == 7
    assert row["debugging/score"] > 0, "a statement that ends with a semicolon"
    assert inspector.finished(wait=True) == []


def test_a_scorer_that_can_not_be_built_is_reported_and_ends_nothing(tokenizer, caplog):
    inspector = Inspector(parse_config({"scoring": {"scorers": [{"class_name": "NoScorer"}]}}), tokenizer)
    inspector.submit(spans_of([document()], tokenizer), counters={})
    assert inspector.finished(wait=True) == []
    assert "could not be inspected" in caplog.text


def test_the_inspector_leaves_the_gpu_to_the_loop(tokenizer, monkeypatch):
    built = []
    monkeypatch.setattr("phf_ray.training.inspection.ScoringProcess", built.append)
    config = parse_config({"scoring": {"scorers": [{"class_name": "DetoxifyToxicityScorer"}]}})
    inspector = Inspector(config, tokenizer)
    inspector.submit(spans_of([document()], tokenizer), counters={})
    inspector.finished(wait=True)
    assert [setup.scorers for setup in built] == [({"class_name": "DetoxifyToxicityScorer", "device": "cpu"},)]
