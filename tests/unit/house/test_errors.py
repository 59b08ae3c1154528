import pickle

import pytest

from phf_ray import errors
from phf_ray.records import Scored, ScoredDocument


@pytest.mark.parametrize("kind", [value for value in vars(errors).values() if isinstance(value, type)])
def test_every_error_survives_a_process_border(kind):
    error = pickle.loads(pickle.dumps(kind("what happened")))
    assert type(error) is kind
    assert str(error) == "what happened"


def test_a_score_is_a_finite_number_or_none_with_a_reason():
    with pytest.raises(errors.DataError, match="not finite"):
        Scored(float("nan"))
    with pytest.raises(errors.DataError, match="exactly one of the two"):
        Scored(None)
    with pytest.raises(errors.DataError, match="exactly one of the two"):
        Scored(0.5, "but failed")


def test_average_leaves_out_what_could_not_be_scored():
    document = ScoredDocument("a", ("x", "y", "z"), (0.5, None, 0.1), (None, "hangs", None))
    assert document.avg_score == pytest.approx(0.3)
    assert ScoredDocument("b", ("x",), (None,), ("hangs",)).avg_score is None
    assert ScoredDocument("c", (), (), ()).avg_score is None


def test_a_document_with_unequal_columns_is_refused():
    with pytest.raises(errors.DataError, match=r"2 segments, 1 scores, 2 errors"):
        ScoredDocument("a", ("x", "y"), (0.5,), (None, None))
