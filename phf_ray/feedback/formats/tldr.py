"""OpenAI's TL;DR comparisons (`summarize_from_feedback`): `info`, two `summaries`, `choice` (0 or 1), `worker`.

`info` is a post of Reddit or an article of CNN/DailyMail. Its prompt has the words with which OpenAI's models were
trained for posts, and TRL's for articles.
"""

from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    annotator_of,
    by_people,
    objects_of,
    preference_by_index,
    text_of,
)
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import TextPrompt

_IN_PROMPT = ("subreddit", "title", "post", "article")


def convert(record: Record, _: Reading) -> Converted:
    info = record["info"]
    if not isinstance(info, dict):
        raise UnfitRecord("no_prompt", "column 'info' holds no object with a post or an article")
    summaries = objects_of(record, "summaries")
    if len(summaries) != 2:
        raise UnfitRecord("not_two_answers", f"column 'summaries' holds {len(summaries)} summaries, not 2")
    first, second = summaries
    row = Comparison(
        TextPrompt(prompt_of(info)),
        text_of(first, "text"),
        text_of(second, "text"),
        preference_by_index(record, "choice"),
        annotator_of(record, "worker"),
    )
    one, other = ({"generator": summary.get("policy"), "note": summary.get("note")} for summary in summaries)
    return Converted(
        (row,),
        frozenset({"info", "summaries", "worker"}),
        notes=((one, other),),
        meta={"info": {name: value for name, value in info.items() if name not in _IN_PROMPT and value is not None}},
    )


def prompt_of(info: Record) -> str:
    """Return the prompt that asks for a summary. Raises UnfitRecord if there is nothing to summarise."""
    if info.get("post") is not None:
        post = by_people(text_of(info, "post"), "the post")
        return f"SUBREDDIT: r/{text_of(info, 'subreddit')}\n\nTITLE: {text_of(info, 'title')}\n\nPOST: {post}\n\nTL;DR:"
    if info.get("article") is not None:
        title = "" if info.get("title") is None else f"TITLE: {text_of(info, 'title')}\n\n"
        return f"{title}{text_of(info, 'article')}\n\nTL;DR:"
    raise UnfitRecord("no_prompt", "column 'info' has neither a post nor an article")


TLDR = FeedbackFormat(columns=(("info", "summaries", "choice"),), fits=lambda _: True, convert=convert)
