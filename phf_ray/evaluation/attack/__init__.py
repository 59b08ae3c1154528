"""Red teaming: an adaptive attack on served models by a red LM.

In: a red LM and models behind URLs, prompts to start from. Out: a transcript of all questions and answers, and a
report. `algorithm.py` is the attack as a generator, `trial.py` gets its answers from servers or from the transcript,
`run.py` runs the whole attack. Open `algorithm.py` first.
"""
