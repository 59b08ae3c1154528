"""Scores with a reward model: minus the reward, because a score is higher for worse texts.

A model that phf-ray trained says in its phf.json how prompts were put into words and how long a row was, and texts are
read the same way here: with the end of text before and after them. Without phf.json, the tokenizer decides what stands
around a text, and its chat template puts prompts into words. Importing this module loads no torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phf_ray.characters import half_at
from phf_ray.checkpoint import RowInfo, read_info
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.joint_rows import JointRows
from phf_ray.generation.chat.prompts import Prompt, PromptError, RenderedExample, TextPrompt
from phf_ray.generation.chat.templates import OWN, PromptTemplate, load_template, stored_template
from phf_ray.generation.chat.token_rows import token_row
from phf_ray.records import Scored
from phf_ray.scorers.base import EMPTY, failure
from phf_ray.scorers.classifier_scorer import ClassifierScorer, ClassifierSettings

_SURROGATE = Scored(None, "UnicodeEncodeError: the text has a lone surrogate")


class RewardModelSettings(ClassifierSettings):
    name: str = "reward"
    path: str
    """Folder or hub id of a sequence classifier with one label: a checkpoint of objective BradleyTerry, or another."""
    revision: str | None = None
    prompt_template: str | None = None
    """Template of the prompts of answers; null: that of the training."""


class RewardModelScorer(ClassifierScorer):
    Settings = RewardModelSettings
    unit = "minus reward"
    default_segmenter = "document"
    measures = "reward"

    def __init__(self, settings: RewardModelSettings):
        from phf_ray.models.backbone import load_tokenizer_beside
        from phf_ray.models.recovery import reward_bias_of
        from phf_ray.models.reward_model import load_reward_classifier

        model = load_reward_classifier(settings.path, revision=settings.revision)
        tokenizer = load_tokenizer_beside(settings.path, revision=settings.revision)
        super().__init__(settings, model=model, tokenizer=tokenizer)
        # The heads of AlpacaFarm's reward models have a bias, for which transformers' classifiers have no place.
        self._bias = reward_bias_of(model.config)
        self._tokenizer = tokenizer
        info = read_info(settings.path) if Path(settings.path).is_dir() else None
        self._rows: RowInfo | None = None if info is None else info.rows
        limit = self._classifier.max_tokens
        self._length = limit if self._rows is None else min(limit, self._rows.length)
        self._template = _template(settings.prompt_template, self._rows, tokenizer=tokenizer)
        compat = None if info is None or self._rows is None else info.feedback_compat
        self._joint_rows: JointRows | None = None
        if compat is not None:
            self._joint_rows = JointRows(
                compat, tokenizer=tokenizer, template=self._template, for_reward=True, length=self._length
            )

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        """Judge each text as it is, as the answer to an empty prompt."""
        return self._judged([("", text) for text in texts])

    def score_answers(self, answers: Sequence[tuple[str, str]]) -> list[Scored]:
        """Judge each answer to its prompt, which the template puts into the words of the training."""
        return self.score_prompts([(TextPrompt(prompt), answer) for prompt, answer in answers])

    def score_prompts(self, answers: Sequence[tuple[Prompt, str]]) -> list[Scored]:
        """As `score_answers`, for prompts that may be messages, or an instruction with its input."""
        template = self.template()
        rendered: list[tuple[str, str] | Scored] = []
        for prompt, answer in answers:
            try:
                example = template.example(prompt, answer)
                rendered.append((example.prompt, example.completion) if answer else EMPTY)
            except PromptError as error:
                rendered.append(failure(error))
        return self._judged(rendered)

    def template(self) -> PromptTemplate:
        """Return what puts prompts into words. Raises ConfigError if neither the model nor the settings say it."""
        if self._template is None:
            raise ConfigError(
                f"{self.name}: the reward model does not say how prompts were put into words; set prompt_template to "
                "that of its training"
            )
        return self._template

    def _judged(self, texts: Sequence[tuple[str, str] | Scored]) -> list[Scored]:
        found: list[Scored] = []
        rows: list[list[int]] = []
        places: list[int] = []
        num_truncated = 0
        for place, text in enumerate(texts):
            if isinstance(text, Scored):
                found.append(text)
            elif not text[1]:
                found.append(EMPTY)
            elif half_at("".join(text)) is not None:
                found.append(_SURROGATE)
            else:
                row, is_cut = self._row(*text)
                found.append(EMPTY)
                rows.append(row)
                places.append(place)
                num_truncated += is_cut
        for place, logits_C in zip(places, self._classifier.logits_of_rows(rows), strict=True):
            if isinstance(logits_C, str):
                found[place] = Scored(None, logits_C)
            else:
                found[place] = Scored(self._score(logits_C.astype(np.float64)))
        # Count only now: if the model raised above, the caller may try the same texts again.
        self.num_truncated += num_truncated
        return found

    def _row(self, before: str, text: str) -> tuple[list[int], bool]:
        if self._rows is None:
            ids = self._ids(before + text, special=True)
            return ids[: self._length], len(ids) > self._length
        if self._joint_rows is not None:
            joint = self._joint_rows.row(RenderedExample(before, text))
            return joint.ids, joint.is_completion_cut
        # As in blocks of examples.
        end_id = self._tokenizer.eos_token_id
        row = token_row(self._ids(before), self._ids(text), length=self._length, start_id=end_id, end_id=end_id)
        return row.ids, row.is_prompt_cut or row.is_completion_cut

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _identity_settings(self) -> dict[str, Any]:
        # The weights have a hash of their own, wherever they lie. The row that is judged follows from these.
        settings = self._settings.model_dump(mode="json", include={"precision", "prompt_template"})
        if self._rows is not None:
            settings |= {"template": self._rows.template_text, "length": self._length}
        if self._joint_rows is not None:
            settings["compat"] = self._joint_rows.compat
        return settings | ({"reward_bias": self._bias} if self._bias else {})

    def _score(self, logits_C: NDArray[np.float64]) -> float:
        return -(float(logits_C[0]) + self._bias)


def _template(chosen: str | None, rows: RowInfo | None, *, tokenizer: Any) -> PromptTemplate | None:
    if chosen is not None:
        return load_template(chosen, tokenizer=tokenizer)
    if rows is not None:
        return stored_template(rows.template, rows.template_text, tokenizer=tokenizer)
    return load_template(OWN, tokenizer=tokenizer) if tokenizer.chat_template else None
