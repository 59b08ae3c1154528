"""The formats of published feedback, one per file. Each reads one record; `table.py` lists them all."""
