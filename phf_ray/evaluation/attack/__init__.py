"""Red teaming: an adaptive attack on served models by a red LM.

In: a red LM and models behind URLs, prompts to start from. Out: a transcript of everything asked, and a report.
`algorithm.py` is the attack as a generator, `trial.py` answers it from servers or from the transcript, `run.py` does
the whole. Open `algorithm.py` first.
"""
