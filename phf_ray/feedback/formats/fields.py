"""Records whose `fields` name the parts of their text and say which are learned: those of Chain of Hindsight.

A corpus of ours in this form has the texts as JSON in `texts`, and the question in `prompt`.
"""

from phf_ray.corpus.json_text import parse_json
from phf_ray.feedback.formats.base import Converted, FeedbackFormat, Reading, Record, UnfitRecord, text_of
from phf_ray.feedback.hindsight.fields import FieldsError, parse_fields, pieces_of, question_of
from phf_ray.feedback.rows import Example, FieldRecord
from phf_ray.generation.chat.prompts import TextPrompt


def convert(record: Record, _: Reading) -> Converted:
    spec = text_of(record, "fields")
    ours = _ours(record)
    found = record if ours is None else ours
    try:
        keys = [key for field in parse_fields(spec) for key in field.keys]
        texts = {key: text_of(found, key) for key in keys if found.get(key) is not None}
        pieces_of(spec, texts)
        question = question_of(spec, texts)
    except FieldsError as problem:
        raise UnfitRecord(problem.reason, str(problem)) from None
    row = Example(TextPrompt(question), record=FieldRecord(spec, texts))
    columns = {"fields", *keys} if ours is None else {"fields", "texts", "prompt", "id"}
    return Converted((row,), frozenset(columns))


def _ours(record: Record) -> Record | None:
    """Return the texts of a record of a corpus of ours; None if it is another's."""
    value = record.get("texts")
    if not isinstance(value, str) or "texts" in str(record["fields"]):
        return None
    try:
        texts = parse_json(value)
    except ValueError:
        return None
    return texts if isinstance(texts, dict) else None


FIELDS = FeedbackFormat(columns=(("fields",),), fits=lambda record: isinstance(record["fields"], str), convert=convert)
