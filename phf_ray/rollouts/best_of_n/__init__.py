"""Best of n: answers to each prompt are sampled, rewarded, and the best is picked; all of them are kept.

In: prompts, a model, rewards. Out: every sample with its rewards, the best answers in AlpacaFarm's rows and as an
`examples` corpus, and the curve of the reward over n. `request.py` says what decides a run, `plan.py` fixes its parts,
`stages.py` samples and rewards a part, `job.py` runs all, `curve.py` estimates. Open `request.py` first.
"""
