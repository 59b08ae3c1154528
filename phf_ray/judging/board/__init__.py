"""Leaderboards: from stored judgements to win rates, ratings and checks of the judge, in files and on a page.

In: rows of judgements. Out: `leaderboard.json`, `leaderboard.csv`, `report.html`, plots, and `rows.parquet`, of which
every figure is a function. `rows.py` says what a row is, `read.py` reads them; `duels.py` makes draws of rows;
`standings.py`, `strengths.py` and `checks.py` compute figures, `figures.py` puts them together; `page.py`, `plots.py`
and `table.py` show them; `write.py` writes everything, `outputs.py` has model outputs judged first. Open `rows.py`
first, then `figures.py`.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "BoardSettings": "stored",
    "JudgedRow": "rows",
    "build_board": "figures",
    "judge_outputs": "outputs",
    "read_judged": "read",
    "recompute_board": "figures",
    "write_board": "write",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
