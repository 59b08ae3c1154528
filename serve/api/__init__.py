"""phf-ray's own HTTP interface: completions, scores, models, tokenization.

In: a `Backend`. Out: a FastAPI application; no Ray, no model. Open `application.py` first.
"""
