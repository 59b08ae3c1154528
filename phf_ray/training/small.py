"""Decides whether a run is so small that this process trains it, where Ray Train would take longer to start."""

from phf_ray.blocks.manifest import BlockManifest
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config
from phf_ray.config.cadence import evaluation_steps
from phf_ray.models.shape import planned_shape
from phf_ray.training.plan import planned_steps
from phf_ray.training.speed import has_gpu
from phf_ray.training.start import starting_model

FLOPS_HERE = 1e13
"""Some minutes of one core. If this process dies, a start that goes on repeats at most those; Ray Train would go on by
itself. Its workers take half a minute or more to start."""


def is_small(config: Config, *, manifest: BlockManifest, checkpoint_path: str | None) -> bool:
    """Whether this process can train a run on these blocks by itself, and would within minutes.

    It can't if the configuration says what workers take or how often they are restarted, if there are several, if
    weights are evaluated during the training, or if there is a GPU, of which Ray keeps count.
    """
    training = config.training
    says_how = training.resources_per_worker or "max_failures" in training.model_fields_set
    if says_how or training.num_workers > 1 or has_gpu():
        return False
    num_steps = planned_steps(
        training,
        num_blocks=manifest.num_blocks,
        tokens_per_block=Mixture.of(manifest, config.dataset.weights).tokens_per_block(training.count_tokens),
    )
    if any(evaluation_steps(config, num_steps=num_steps)):
        return False
    tokenizer = load_tokenizer(config.tokenizer)
    starting = starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    shape = planned_shape(starting, tokenizer=tokenizer, is_reward_model=config.trains_reward_model)
    tokens = num_steps * training.effective_batch_size * config.dataset.seq_length
    return tokens * shape.flops_per_token(config.dataset.seq_length) <= FLOPS_HERE
