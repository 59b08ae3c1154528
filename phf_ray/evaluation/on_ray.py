"""Evaluation on Ray: actors that send requests to servers, and tasks that evaluate weights during training."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from phf_ray.config import Config
from phf_ray.evaluation.asking import Outcome, ServerWork
from phf_ray.evaluation.beside_training import CheckpointEvaluations, EvaluationJob, evaluate_step, plan_evaluations
from phf_ray.http.client import is_on_this_machine
from phf_ray.runs.directory import RunDirectory


def label_selector(urls: Iterable[str]) -> dict[str, str]:
    """Return labels of the nodes on which Ray may run the actors that send requests to these servers.

    Empty: any node. If one of the servers can be reached only from this node: this node alone.
    """
    import ray

    if any(is_on_this_machine(url) for url in urls):
        return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return {}


_PROGRESS_S = 5.0
_RETRIES = 2
"""Retries of a task whose process or node died."""


def evaluations_beside(config: Config, run: RunDirectory, *, num_steps: int) -> CheckpointEvaluations | None:
    """Return the evaluations of a run's weights during training; None if the configuration asks for none."""
    job = plan_evaluations(config, run, num_steps=num_steps, resources=evaluation_resources(config))
    return None if job is None else CheckpointEvaluations(run, job, start=EvaluationTask)


def evaluation_resources(config: Config) -> dict[str, float]:
    """Return the resources of an evaluation: by default a GPU if the training workers leave one, else a CPU."""
    import ray

    training = config.training
    if training.resources_per_evaluation:
        return dict(training.resources_per_evaluation)
    num_gpus = ray.cluster_resources().get("GPU", 0.0)
    taken = training.num_workers * training.resources_per_worker.get("GPU", 1.0 if num_gpus else 0.0)
    return {"CPU": 1.0, "GPU": 1.0} if num_gpus - taken >= 1 else {"CPU": 1.0}


class EvaluationTask:
    """A Ray task that evaluates the weights of one step."""

    def __init__(self, job: EvaluationJob, step: int):
        import ray

        self._asked = dict(job.resources)
        resources = dict(job.resources)
        remote: Any = ray.remote  # its types are for tasks with fixed options
        task = remote(
            num_cpus=resources.pop("CPU", 0.0),
            num_gpus=resources.pop("GPU", 0.0),
            resources=resources,
            max_retries=_RETRIES,
            name=f"evaluate step {step}",
        )(evaluate_step)
        self._answer = task.remote(asdict(job), step)

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        import ray

        return dict(ray.get(self._answer)) if ray.wait([self._answer], timeout=timeout_s)[0] else None

    def cancel(self) -> None:
        import ray

        ray.cancel(self._answer, force=True)

    def lacking(self) -> str | None:
        import ray

        available = ray.cluster_resources()
        for name, amount in self._asked.items():
            if amount > available.get(name, 0.0):
                return f"{amount:g} {name}"
        return None


class AskActor:
    """A process that sends requests to servers."""

    def __init__(self, work: ServerWork[Any], items: Sequence[Any]):
        self._work, self._items = work, items
        self._refusal: Outcome | None = None

    def __call__(self, row: dict[str, Any]) -> list[Outcome]:
        # More items wait in this actor's queue. A refusal ends the job, so send no more requests after one.
        if self._refusal is not None:
            return [self._refusal]
        outcomes = self._work.run(self._items[int(row["item"])])
        self._refusal = next((outcome for outcome in outcomes if outcome["refused"] == "all"), None)
        return outcomes


def run_on_ray(
    work: ServerWork[Any],
    items: Sequence[Any],
    *,
    max_clients: int | None,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """An `AskRunner` with 1 to `max_clients` actors, as many as the servers keep busy.

    By default at most one actor for every 4 CPUs of the cluster, because each can put a heavy load on a server.
    """
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    if max_clients is None:
        max_clients = max(1, int(ray.cluster_resources().get("CPU", 1)) // 4)
    most = min(max_clients, len(items))
    # A long item must not wait behind another one while a process is free, so each actor's queue holds one item. Then
    # all actors start at once, because a pool grows only if items wait in its actors' queues.
    least, queue = (most, 1) if work.takes_long else (1, None)
    outcomes = ray.data.from_items([{"item": number} for number in range(len(items))], override_num_blocks=len(items))
    answered = outcomes.flat_map(
        AskActor,
        fn_constructor_args=(work, list(items)),
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=queue),
        # The actors mostly wait for the server, which may need every CPU there is.
        num_cpus=0,
        label_selector=label_selector(work.urls),
    )
    with _called_every(_PROGRESS_S, progress):
        yield from answered.iter_rows()


@contextlib.contextmanager
def _called_every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(seconds):
            call()

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
