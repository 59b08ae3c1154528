"""Chain of Hindsight: feedback put into words, of which the answers are learned.

`fields.py` is the grammar of a record, `records.py` makes the records of a comparison, `settings.py` holds what decides
them, `jsonl.py` writes them for other trainers. The words are in `configs/phrases/`.
"""
