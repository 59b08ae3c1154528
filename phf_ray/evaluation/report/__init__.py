"""Reports: from samples to `report.json`, plots and a page; every figure can be computed again from the samples.

In: `samples.parquet`. Out: figures with intervals, PNG plots, one HTML file. `records.py` defines the records,
`figures.py` computes the figures, `table.py`, `plots.py` and `page.py` show them, `write.py` writes everything.
Importing the records loads neither torch nor matplotlib. Open `records.py` first, then `figures.py`.
"""
