"""Decides after which training steps the weights are evaluated."""

from phf_ray.config.evaluation import GenerationConfig, KLConfig
from phf_ray.config.whole import Config


def due_steps(cadence: GenerationConfig | KLConfig, *, num_steps: int) -> frozenset[int]:
    """Return the steps after which weights are evaluated: 0 is before the first step, `num_steps` after the last."""
    every = cadence.every_n_steps
    steps = set() if every is None else set(range(every, num_steps + 1, every))
    steps |= {step for step in cadence.force_call_on if 0 <= step <= num_steps}
    if cadence.run_on_train_start:
        steps.add(0)
    if cadence.run_on_train_end:
        # DIFFERS: phf-ray evaluates the weights of the last step; the original ends without evaluating them (D-7).
        steps.add(num_steps)
    return frozenset(steps)


def evaluation_steps(config: Config, *, num_steps: int) -> tuple[frozenset[int], frozenset[int]]:
    """Return the steps with samples (none without a scenario) and the steps with KL (none without a reference)."""
    samples = due_steps(config.generation, num_steps=num_steps) if config.generation.scenario_configs else frozenset()
    kl = config.kl_gpt3_callback
    has_reference = kl.reference is not None or kl.reference_samples is not None
    return samples, due_steps(kl, num_steps=num_steps) if has_reference else frozenset()
