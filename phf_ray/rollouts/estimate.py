"""What a run of rounds will take, as far as it is known before it starts."""

from collections.abc import Iterator

from phf_ray.config import Config
from phf_ray.models.shape import ModelShape
from phf_ray.rollouts.algorithms.build import build_algorithm
from phf_ray.rollouts.cost import describe_cost
from phf_ray.rollouts.driver import PreparedRun
from phf_ray.training.memory import GB


def describe_rounds(config: Config, prepared: PreparedRun, *, shape: ModelShape) -> Iterator[str]:
    """Yield lines for `--dry-run`."""
    rollouts, algorithm, plan = config.rollouts, config.algorithm, prepared.plan
    assert rollouts is not None
    assert algorithm is not None
    built = build_algorithm(algorithm, compat=config.feedback_compat)
    num_answers = rollouts.rounds * rollouts.rows_per_round
    per_epoch = plan.num_prompts // rollouts.prompts_per_round
    left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(prepared.left_out.items()))
    yield f"prompts      {plan.num_prompts:,}" + (f"; left out: {left_out}" if left_out else "")
    yield (
        f"rounds       {rollouts.rounds:,} of {rollouts.prompts_per_round} prompts x {rollouts.samples_per_prompt} "
        f"answers; {rollouts.rounds / per_epoch:.2g} passes over the prompts"
    )
    yield f"answers      {num_answers:,}, at most {num_answers * rollouts.max_tokens:,} tokens"
    if rollouts.place == "actors":
        pool = rollouts.actors
        most = "what the cluster has room for" if pool.max is None else pool.max
        ahead = "; a round is drawn while the one before it is learned" if rollouts.max_staleness else ""
        each = f"{pool.num_cpus:g} CPU and {pool.num_gpus:g} GPU"
        yield f"actors       {pool.min} to {most}, of {each}, each with the weights{ahead}"
    yield f"steps        {plan.num_steps:,}, {plan.steps_per_round} a round"
    rewards = ", ".join(f"{spec.called} (weight {spec.weight:g})" for spec in rollouts.reward)
    yield f"rewards      {rewards}" + ("" if rollouts.gold is None else f"; gold: {rollouts.gold.called}")
    yield f"algorithm    {algorithm.name}"
    yield f"parameters   {shape.num_parameters:,}, {shape.num_trained:,} trained"
    trained = shape.num_trained
    critic_memory = 0.0
    if prepared.critic is not None:
        critic = prepared.critic.shape
        yield f"critic       {critic.num_parameters:,}, {critic.num_trained:,} trained"
        trained += critic.num_trained
        critic_memory = 4.0 * critic.num_parameters
    needs_reference = rollouts.reports_kl or built.needs_reference or built.needs_reference_states
    has_own = needs_reference and (config.model.lora is None or built.needs_reference_states)
    # Weights in fp32, gradients and Adam's two moments; the reference has weights alone.
    memory = 4.0 * shape.num_parameters * (2 if has_own else 1) + critic_memory + 12.0 * trained
    what = "with the reference's" if has_own else "without a reference of its own"
    what += "" if prepared.critic is None else ", with the critic's"
    yield (
        f"memory       {memory / GB:.2f} GB a worker for weights, {what}, gradients and optimizer; activations, "
        "keys and values, and reward models come on top"
    )
    yield f"disk         {12.0 * trained / GB:.2f} GB a checkpoint"
    yield from describe_cost(config, prepared, shape=shape)
