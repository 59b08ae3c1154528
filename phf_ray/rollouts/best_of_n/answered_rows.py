"""Reads answers that are there already, to be reranked: AlpacaFarm's rows of decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.characters import half_at
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.chat.templates import PromptTemplate
from phf_ray.judging.board.read import read_records
from phf_ray.rollouts.prompts import RolloutPrompt, prompt_of, rollout_prompt
from phf_ray.storage.hashing import digest

Outputs = tuple[str | None, ...]


def read_answered(
    sources: Sequence[str],
    *,
    template: PromptTemplate | None,
    n: int | None = None,
    option: str = "--prompts",
    limit: int | None = None,
) -> tuple[list[RolloutPrompt], list[Outputs]]:
    """Return the prompts, and the answers to each: `output`, one or a list. `n`: only the first of them.

    A row's own `prompt` is the text that its answers continue; without one, `template` puts it into words. Raises
    DataError if rows have different numbers of answers, or a prompt occurs twice, ConfigError if they have fewer than
    n.
    """
    prompts: list[RolloutPrompt] = []
    outputs: list[Outputs] = []
    first_place, seen = "", set()
    for place, record in read_records(sources, option=option):
        if len(prompts) == limit:
            break
        prompt, own = _prompt(record, place, template), _outputs(record, place)
        for text in (prompt.text, prompt.instruction, prompt.input):
            if (half := half_at(text)) is not None:
                raise DataError(
                    f"{place}: character {half} of the prompt is half of a surrogate pair; mend or remove it"
                )
        if outputs and len(own) != len(outputs[0]):
            raise DataError(
                f"{place} has {len(own)} answers, and {first_place} has {len(outputs[0])}; every row needs as many, "
                "with null in place of one that is missing"
            )
        if prompt.id in seen:
            raise DataError(f"{place}: its prompt is that of an earlier row; put their answers into one row")
        first_place = first_place or place
        seen.add(prompt.id)
        prompts.append(prompt)
        outputs.append(own)
    if not prompts:
        raise DataError(f"{option} {' '.join(sources)}: there are no rows; give a file with some")
    if n is not None and n > len(outputs[0]):
        raise ConfigError(f"--n {n}, but the rows of {' '.join(sources)} hold {len(outputs[0])} answers; sample more")
    return prompts, [own[:n] for own in outputs]


def _prompt(record: Mapping[str, Any], place: str, template: PromptTemplate | None) -> RolloutPrompt:
    # Of AlpacaFarm's rows, `prompt` is the instruction in the words of its template.
    given = record.get("prompt") if "instruction" in record else None
    asked = prompt_of(record, place)
    if not isinstance(given, str):
        return rollout_prompt(asked, template=template, row=_carried(record))
    return RolloutPrompt(digest(["prompt", given], size=16), given, asked, _carried(record))


def _carried(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("output", "prompt")}


def _outputs(record: Mapping[str, Any], place: str) -> Outputs:
    given = record.get("output")
    own = [given] if isinstance(given, str) else given
    if not isinstance(own, list) or not own or not all(one is None or isinstance(one, str) for one in own):
        raise DataError(f"{place}: output is {given!r:.80}; write an answer, or a list of them")
    for one in own:
        if one is not None and (half := half_at(one)) is not None:
            raise DataError(f"{place}: an answer has half of a surrogate pair at character {half}; mend or remove it")
    return tuple(own)
