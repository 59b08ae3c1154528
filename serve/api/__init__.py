"""The HTTP interface of phf-ray itself: completions, scores, models, tokenization.

In: a `Backend`. Out: a FastAPI application; no Ray, no model. Open `application.py` first.
"""
