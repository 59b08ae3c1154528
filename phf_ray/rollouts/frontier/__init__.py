"""The frontier: gold and proxy against KL for any set of finished runs and results, on one page.

`sources.py` tells what a folder holds; `from_rounds.py`, `from_best_of_n.py`, `from_reports.py` and `boards.py` read
it; `alike.py` warns of what does not compare. `frontier.json` holds every figure of the page. No torch, no Ray. Open
`methods.py` first.
"""
