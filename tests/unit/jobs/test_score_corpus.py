import json

import pytest

from jobs.score_corpus import main
from phf_ray.errors import DataError


def test_the_jobs_own_error_is_shown_even_if_its_summary_cannot_be_written(tmp_path, caplog):
    (tmp_path / "a.py").write_text("x = 1\n")
    output = tmp_path / "scored"
    output.mkdir()
    (output / "plan.json").write_text(json.dumps({"identities": [], "shards": "damaged"}))
    # Files of the corpus are written through this folder, so nothing can be written.
    (output / "_tmp").write_text("in the way")
    with pytest.raises(DataError, match=r"plan\.json can't be read"):
        main(["--task", "pep8", "--input", str(tmp_path / "a.py"), "--output", str(output)])
    assert "summary.json could not be written: " in caplog.text
    (output / "_tmp").unlink()
    with pytest.raises(DataError):
        main(["--task", "pep8", "--input", str(tmp_path / "a.py"), "--output", str(output)])
    assert "plan.json can't be read" in json.loads((output / "summary.json").read_text())["error"]
