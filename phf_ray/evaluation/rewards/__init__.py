"""A reward model judges stored comparisons: how often the better answer gets the higher reward, and how surely.

In: comparisons and a scorer that reads prompts. Out: `reward.json`, `reward.txt`, and `rows.jsonl`, from which every
figure can be computed again. Open `judged.py` first, then `figures.py`.
"""
