"""One record of each published set, in its own shape, with our own words."""

from typing import Any

ASKED = [{"role": "user", "content": "Name a river."}]
PROMPT = "Name a river."
GOOD, BAD = "The Elbe flows through Dresden.", "No."


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


HELPSTEER3: dict[str, Any] = {
    "domain": "general",
    "language": "english",
    "context": ASKED,
    "response1": GOOD,
    "response2": BAD,
    "overall_preference": -2,
    "individual_preference": [
        {"score": -2, "reasoning": "It names one.", "feedback1": "Right.", "feedback2": "It refuses."}
    ],
}
NECTAR: dict[str, Any] = {
    "prompt": "\n\nHuman: Name a river.\n\nAssistant: ",
    "answers": [
        {"answer": "The Rhine.", "model": "b", "rank": 2.0},
        {"answer": GOOD, "model": "a", "rank": 1.0},
        {"answer": BAD, "model": "c", "rank": 3.0},
    ],
    "turns": 1,
    "num_responses": 3,
    "source": ["own"],
    "good_natured": True,
}
PKU: dict[str, Any] = {
    "prompt": PROMPT,
    "response_0": BAD,
    "response_1": GOOD,
    "prompt_source": "own",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "response_0_harm_category": {"Privacy Violation": False},
    "response_0_severity_level": 0,
    "better_response_id": 1,
    "safer_response_id": 0,
    "response_0_sha256": "0",
}
TLDR: dict[str, Any] = {
    "info": {
        "id": "t3_1", "post": "I fell into the Elbe.\n\nIt was cold.", "title": "Wet", "subreddit": "rivers",
        "site": None, "article": None,
    },
    "summaries": [
        {"text": " Fell in.", "policy": "sup2", "note": "short"},
        {"text": " Fell into a cold river.", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "w7",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": 8},
}  # fmt: skip
WEBGPT: dict[str, Any] = {
    "question": {"dataset": "eli5", "id": "q1", "full_text": PROMPT},
    "quotes_0": {"title": ["Rivers (a.example)"], "extract": ["The Elbe flows"]},
    "answer_0": GOOD,
    "tokens_0": {"prefix": [1, 2], "completion": [3]},
    "score_0": 0.5,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": BAD,
    "tokens_1": {"prefix": [1], "completion": [4]},
    "score_1": -0.5,
}
SHP: dict[str, Any] = {
    "post_id": "p",
    "domain": "askrivers_train",
    "history": PROMPT,
    "human_ref_A": GOOD,
    "human_ref_B": BAD,
    "labels": 1,
    "score_A": 20,
    "score_B": 2,
    "score_ratio": 10.0,
}
BATTLE: dict[str, Any] = {
    "question_id": "q",
    "model_a": "koala",
    "model_b": "alpaca",
    "winner": "model_b",
    "judge": "arena_user_1",
    "conversation_a": ASKED + said(BAD),
    "conversation_b": ASKED + said(GOOD),
    "turn": 1,
    "anony": True,
    "language": "English",
    "tstamp": 1.5,
}
ULTRAFEEDBACK: dict[str, Any] = {
    "prompt": PROMPT,
    "prompt_id": "f0e1",
    "chosen": ASKED + said(GOOD),
    "rejected": ASKED + said(BAD),
    "messages": ASKED + said(GOOD),
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}
TULU: dict[str, Any] = {
    "id": "t1",
    "prompt": PROMPT,
    "chosen": ASKED + said(GOOD),
    "rejected": ASKED + said(BAD),
    "source": "own-mixture",
}
DISTILABEL: dict[str, Any] = {
    "source": "own",
    "prompt": PROMPT,
    "chosen": ASKED + said(GOOD),
    "chosen-rating": 4.5,
    "chosen-model": "a",
    "rejected": ASKED + said(BAD),
    "rejected-rating": 3.0,
    "rejected-model": "b",
}
ORCA: dict[str, Any] = {
    "system": "You are brief.",
    "input": PROMPT,
    "chosen": GOOD,
    "rejected": BAD,
    "generations": [BAD, GOOD],
    "order": ["rejected", "chosen"],
    "rating": [2.0, 9.0],
    "status": "swapped",
    "chosen_score": 9.0,
    "in_gsm8k_train": False,
}
ULTRAFEEDBACK_RAW: dict[str, Any] = {
    "source": "sharegpt",
    "instruction": PROMPT,
    "models": ["a", "b", "c", "d"],
    "completions": [
        {
            "annotations": {"helpfulness": {"Rating": "3", "Rationale": "Right.", "Type": ["1"]}},
            "custom_system_prompt": "Be right.",
            "model": model,
            "principle": "helpfulness",
            "response": text,
            "critique": "Say more.",
            "fine-grained_score": score / 2,
            "overall_score": score,
        }
        for model, text, score in (("a", BAD, 2.0), ("b", GOOD, 8.5), ("c", "The Rhine.", 7.0), ("d", "The Main.", 7.0))
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
HELPSTEER2: list[dict[str, Any]] = [
    {
        "prompt": PROMPT,
        "response": text,
        "helpfulness": rating,
        "correctness": 3,
        "coherence": 4,
        "complexity": 1,
        "verbosity": rating,
    }
    for text, rating in ((BAD, 1), (GOOD, 3))
]
HELPSTEER2_PREFERENCE: dict[str, Any] = {
    "split": "train",
    "prompt": PROMPT,
    "response_1": BAD,
    "response_2": GOOD,
    "preference_strength": 2,
    "preference_statement": "@Response 2 is better than @Response 1 because it names one.",
    "preference_elaboration": "It names a river.",
    "three_most_similar_preferences": [{"statement": "a", "elaboration": "b", "strength": 2}],
    "all_preferences_unprocessed": [{"strength": -100, "justification_1": "c"}],
}
ARENA: dict[str, Any] = {
    "id": 30192,
    "model_a": "koala",
    "model_b": "alpaca",
    "prompt": '["Name a river."]',
    "response_a": '["No."]',
    "response_b": '["The Elbe flows through Dresden."]',
    "winner_model_a": 0,
    "winner_model_b": 1,
    "winner_tie": 0,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "helpsteer3": HELPSTEER3,
    "helpsteer2-preference": HELPSTEER2_PREFERENCE,
    "arena": ARENA,
    "ultrafeedback-raw": ULTRAFEEDBACK_RAW,
    "nectar": NECTAR,
    "pku": PKU,
    "tldr": TLDR,
    "webgpt": WEBGPT,
    "shp": SHP,
    "battles": BATTLE,
    "ultrafeedback": ULTRAFEEDBACK,
    "tulu": TULU,
    "distilabel": DISTILABEL,
}
