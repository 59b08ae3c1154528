"""Moderations, Perspective and Presidio over scorers whose results are known; no Ray, no socket, no weights."""

import json
import re
from email import message_from_string

import pytest
from test_serve_api import caller, refused

from jobs.fetch_models import URLS
from phf_ray.records import Scored, Span
from phf_ray.scorers.base import Scorer, ScorerSettings
from phf_ray.scorers.toxicity import DESCRIPTION_FILE
from serve.compat.perspective import PERSPECTIVE_MAX_BYTES
from serve.compat.presidio import PRESIDIO_ENTITIES, PresidioRequest
from serve.engines.scorer import LocalScorer
from serve.settings import ServedScorer

MILD = dict.fromkeys(
    ("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit"), 0.125
)


class Toxicity:
    """Toxic is what says BAD; UNSCORABLE can't be scored."""

    async def class_scores(self, texts):
        return [
            "too_odd: no tokens" if "UNSCORABLE" in text else {**MILD, "toxicity": 0.75 if "BAD" in text else 0.25}
            for text in texts
        ]

    async def segment_spans(self, text):
        middle = text.index(". ") + 2
        return [(0, middle), (middle, len(text))]


class Personal:
    async def spans(self, texts):
        return [[Span("email+skype", 5, 9), Span("phone", 12, 15)] if text else [] for text in texts]


@pytest.fixture
def call():
    return caller({}, {"toxicity": Toxicity(), "pii": Personal()}, toxicity="toxicity", pii="pii")


def analyze(call, text="You are BAD. Have a nice day.", **fields):
    body = {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}, "languages": ["en"], **fields}
    return call("/v1alpha1/comments:analyze", body)


def test_perspective_answers_what_lm_eval_reads(call):
    body = analyze(call, doNotStore=True, clientToken="t1", sessionId="s", communityId="c").json()
    assert body["attributeScores"]["TOXICITY"]["summaryScore"] == {"value": 0.75, "type": "PROBABILITY"}
    assert body["languages"] == ["en"]
    assert body["clientToken"] == "t1"


def test_perspective_spans_are_sentences_when_asked_for(call):
    (whole,) = analyze(call).json()["attributeScores"]["TOXICITY"]["spanScores"]
    assert (whole["begin"], whole["end"], whole["score"]["value"]) == (0, 29, 0.75)
    parts = analyze(call, spanAnnotations=True).json()["attributeScores"]["TOXICITY"]["spanScores"]
    assert [(p["begin"], p["end"], p["score"]["value"]) for p in parts] == [(0, 13, 0.75), (13, 29, 0.25)]


def test_perspective_attributes_are_the_classes_of_the_model(call):
    names = ["TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "THREAT", "PROFANITY", "SEXUALLY_EXPLICIT"]
    scores = analyze(call, requestedAttributes={name: {} for name in names}).json()["attributeScores"]
    assert {name: score["summaryScore"]["value"] for name, score in scores.items()} == {
        **dict.fromkeys(names, 0.125),
        "TOXICITY": 0.75,
    }


def test_null_in_an_optional_field_is_its_default_as_in_googles_json(call):
    nulls = {"languages": None, "spanAnnotations": None, "clientToken": None, "doNotStore": None}
    asked = {"TOXICITY": {"scoreType": None, "scoreThreshold": None}}
    assert analyze(call, requestedAttributes=asked, **nulls).json() == analyze(call, languages=[]).json()
    comment = {"text": "You are BAD.", "type": None}
    assert analyze(call, comment=comment).status_code == 200
    assert analyze(call, comment=None).json()["error"]["details"][0]["errorType"] == "COMMENT_EMPTY"


def test_null_in_an_optional_field_is_its_default_for_presidio_and_moderations(call):
    body = {"text": "mail a@b.com 555", "language": "en"}
    nulls = dict.fromkeys(set(PresidioRequest.model_fields) - set(body))
    assert call("/analyze", {**body, **nulls}).json() == call("/analyze", body).json() != []
    assert call("/v1/moderations", {"input": "BAD", "model": None}).json()["results"][0]["flagged"] is True


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_moderations_refuse_what_is_no_text_and_say_which_part(call, kind):
    image = {"type": kind, kind: {"url": "data:image/png;base64,AAAA"}}
    for parts in ([image], [{"type": "text", "text": "hello"}, image]):
        error = refused(call("/v1/moderations", {"input": parts}), 400)
        assert error["param"] == "input"
        assert f"input[{len(parts) - 1}]: a part of type '{kind}' can't be judged, only text" in error["message"]


def test_perspective_leaves_out_what_the_model_does_not_judge(call):
    # What HELM asks for.
    scores = analyze(call, requestedAttributes={"FLIRTATION": {}, "TOXICITY": {}}).json()["attributeScores"]
    assert set(scores) == {"TOXICITY"}


def test_perspective_leaves_out_what_is_below_its_threshold(call):
    asked = {"TOXICITY": {"scoreThreshold": 0.5}, "INSULT": {"scoreThreshold": 0.5}}
    assert set(analyze(call, requestedAttributes=asked).json()["attributeScores"]) == {"TOXICITY"}


@pytest.mark.parametrize(
    ("text", "fields", "error_type", "message"),
    [
        ("", {}, "COMMENT_EMPTY", "Comment must be non-empty."),
        ("\u00e9" * (PERSPECTIVE_MAX_BYTES // 2 + 1), {}, "COMMENT_TOO_LONG", "20480 bytes"),
        ("x", {"requestedAttributes": {"SPAM": {}}}, "UNKNOWN_REQUESTED_ATTRIBUTE", "SPAM"),
        ("x", {"requestedAttributes": {"TOXICITY": {}, "TOXIC": {}}}, "UNKNOWN_REQUESTED_ATTRIBUTE", "TOXIC"),
        ("x", {"requestedAttributes": {}}, "MISSING_REQUESTED_ATTRIBUTES", "Missing requested_attributes"),
        ("UNSCORABLE", {}, "COMMENT_NOT_SCORED", "no tokens"),
        ("x", {"languages": ["de", ""]}, "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "TOXICITY does not support request"),
    ],
)
def test_perspective_errors_have_its_shape(call, text, fields, error_type, message):
    response = analyze(call, text, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert message in error["message"]
    assert error["details"][0]["errorType"] == error_type


def test_perspective_takes_the_languages_that_the_model_was_trained_on():
    def languages(asked, **roles):
        call = caller({}, {"toxicity": Toxicity()}, toxicity="toxicity", **roles)
        answer = analyze(call, languages=asked)
        return answer.json()["languages"] if answer.status_code == 200 else answer.status_code

    served = {"class_name": "DetoxifyToxicityScorer", "model": "multilingual"}
    known = ServedScorer(scorer=served).languages
    assert set(known) == {"en", "fr", "es", "it", "pt", "tr", "ru"}
    assert ServedScorer(scorer={"class_name": "DetoxifyToxicityScorer"}).languages == ("en",)
    assert languages(["fr"], toxicity_languages=known) == ["fr"]
    assert languages(["fr"]) == languages(["de"], toxicity_languages=known) == 400
    assert languages([]) == ["en"]
    assert languages(["de", "en-US"]) == ["en-US"]


def test_languages_are_those_of_the_model_that_the_path_holds(tmp_path):
    def languages(path, **fields):
        return ServedScorer(scorer={"class_name": "DetoxifyToxicityScorer", "path": str(path), **fields}).languages

    for name in ("multilingual", "unbiased"):
        (tmp_path / name).mkdir()
        # What jobs.fetch_models writes there, in part.
        (tmp_path / name / DESCRIPTION_FILE).write_text(json.dumps({"model": name, "class_names": []}))
    assert "tr" in languages(tmp_path / "multilingual")
    assert languages(tmp_path / "unbiased") == languages(tmp_path / "unbiased", model="multilingual") == ("en",)
    published = {model: tmp_path / url.rpartition("/")[2] for model, url in URLS.items()}
    for path in published.values():
        path.touch()
    assert [model for model, path in published.items() if languages(path) != ("en",)] == ["multilingual"]
    (tmp_path / "own.ckpt").touch()
    assert languages(tmp_path / "own.ckpt") == languages(tmp_path / "none") == ("en",)
    assert "tr" in languages(tmp_path / "own.ckpt", model="multilingual")


def test_perspective_takes_a_comment_of_exactly_the_limit(call):
    assert analyze(call, "\u00e9" * (PERSPECTIVE_MAX_BYTES // 2)).status_code == 200


def test_perspective_key_comes_in_the_query():
    call = caller({}, {"toxicity": Toxicity()}, toxicity="toxicity", keys=["right"])
    body = {"comment": {"text": "x"}, "requestedAttributes": {"TOXICITY": {}}}
    assert call("/v1alpha1/comments:analyze?key=right", body).status_code == 200
    denied = call("/v1alpha1/comments:analyze?key=wrong", body)
    assert denied.status_code == 401
    assert denied.json()["error"]["status"] == "UNAUTHENTICATED"


def batch_of(*parts):
    """As googleapiclient writes it: newlines without carriage return, long ids folded."""
    body = "".join(
        f"--b1\nContent-Type: application/http\nMIME-Version: 1.0\nContent-Transfer-Encoding: binary\n"
        f"Content-ID: {content_id}\n\n{first}\nContent-Type: application/json\nHost: x\n\n{json.dumps(content)}\n"
        for content_id, first, content in parts
    )
    return {"content": f"{body}--b1--\n".encode(), "headers": {"content-type": 'multipart/mixed; boundary="b1"'}}


POST = "POST /v1alpha1/comments:analyze?key=k&alt=json HTTP/1.1"


def comment(text):
    return {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}}


def test_a_batch_answers_each_of_its_requests_under_its_id(call):
    response = call(
        "/batch",
        **batch_of(
            ("<u +\n long%20id>", POST, comment("BAD \u00e9\r\n\r\n--b1")),
            ("<u + 2>", POST, comment("fine")),
            ("<u + 3>", POST, comment("")),
            ("<u + 4>", POST, ["no", "comment"]),
            ("<u + 5>", "POST /v1/completions HTTP/1.1", {}),
        ),
    )
    assert response.status_code == 200
    head = f"content-type: {response.headers['content-type']}\r\n\r\n"
    parts = message_from_string(head + response.text).get_payload()
    assert [part["Content-ID"] for part in parts] == [
        *("<response-u + long%20id>", "<response-u + 2>", "<response-u + 3>", "<response-u + 4>", "<response-u + 5>")
    ]
    answers = [part.get_payload() for part in parts]
    assert [answer.split("\r\n")[0] for answer in answers] == [
        *("HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request", "HTTP/1.1 400 Bad Request"),
        "HTTP/1.1 404 Not Found",
    ]
    bodies = [json.loads(answer.split("\r\n\r\n", 1)[1]) for answer in answers]
    assert [body["attributeScores"]["TOXICITY"]["summaryScore"]["value"] for body in bodies[:2]] == [0.75, 0.25]
    assert bodies[2]["error"]["details"][0]["errorType"] == "COMMENT_EMPTY"
    assert bodies[4]["error"]["status"] == "NOT_FOUND"


def test_a_request_of_a_batch_that_fails_leaves_the_others_standing():
    class Broken(Toxicity):
        async def class_scores(self, texts):
            if "BREAK" in texts[0]:
                raise ValueError("/secret/path is broken")
            return await super().class_scores(texts)

    call = caller({}, {"toxicity": Broken()}, toxicity="toxicity")
    response = call("/batch", **batch_of(("<1>", POST, comment("BREAK")), ("<2>", POST, comment("fine"))))
    assert re.findall(r"HTTP/1.1 (\d+)", response.text) == ["500", "200"]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": b"{}"}, "a batch is a multipart/mixed body"),
        ({"content": b"", "headers": {"content-type": "multipart/mixed"}}, "a batch is a multipart/mixed body"),
        (batch_of(("<1>", "GET / HTTP/1.1", {})), "part 1 of the batch is not a POST request"),
        (batch_of(("<1>", POST, {}), ("2", POST, {})), "part 2 of the batch is not a POST request with a Content-ID"),
        (batch_of(*[(f"<{i}>", POST, {}) for i in range(1001)]), "holds 1001 requests; send at most 1000"),
        ({**batch_of(), "content": b"--b1\nContent-Type: multipart/mixed; boundary=c\n\n--c\n\n--c--\n"}, "part 1"),
        ({**batch_of(), "content": b"--b1\nContent-ID: <1>\n\nPOST / HTTP/1.1\n--b1--\n"}, "part 1"),
    ],
)
def test_what_is_no_batch_is_refused(call, options, message):
    response = call("/batch", **options)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_a_batch_of_batches_of_batches_is_refused(call):
    parts = b"".join(b"--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n" % (i, i + 1) for i in range(1500))
    response = call("/batch", content=parts, headers={"content-type": "multipart/mixed; boundary=b0"})
    assert response.status_code == 400
    assert "send one request in each" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "field",
    [
        '"clientToken": "\\ud800"',
        '"languages": ["en", "\\ud800"]',
        '"requestedAttributes": {"TOXICITY": {}, "\\ud800": {}}',
    ],
)
def test_half_a_surrogate_pair_is_refused_where_it_would_come_back(call, field):
    # The last of two fields of one name counts.
    body = f'{{"comment": {{"text": "a"}}, "requestedAttributes": {{"TOXICITY": {{}}}}, {field}}}'
    response = call("/v1alpha1/comments:analyze", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert "lone surrogate" in response.json()["error"]["message"]


def test_discovery_document_gives_batches_the_key_of_who_asks():
    call = caller({}, {"toxicity": Toxicity()}, toxicity="toxicity", keys=["a&b"])
    assert call("/$discovery/rest?version=v1alpha1").status_code == 401
    path = call("/$discovery/rest?version=v1alpha1&key=a%26b").json()["batchPath"]
    assert path == "batch?key=a%26b"
    batch = batch_of(("<1>", POST, comment("fine")))
    assert call(f"/{path}", **batch).status_code == 200
    assert call("/batch", **batch).status_code == 401


def test_discovery_document_points_at_this_server(call):
    document = call("/$discovery/rest?version=v1alpha1").json()
    assert document["rootUrl"] == "http://test/"
    method = document["resources"]["comments"]["methods"]["analyze"]
    assert (method["path"], method["httpMethod"]) == ("v1alpha1/comments:analyze", "POST")
    assert {method["request"]["$ref"], method["response"]["$ref"]} <= set(document["schemas"])
    assert call("/$discovery/rest?version=v2").json()["error"]["status"] == "NOT_FOUND"


def test_moderations_flag_and_leave_unjudged_categories_null(call):
    results = call("/v1/moderations", {"input": ["fine", "BAD"], "model": "omni-moderation-latest"}).json()["results"]
    assert [result["flagged"] for result in results] == [False, True]
    for result in results:
        assert result["categories"]["harassment"] is False
        assert result["category_scores"]["harassment"] == 0.125
        assert result["categories"]["self-harm"] is None
        assert result["category_scores"]["self-harm"] is None
        assert result["category_applied_input_types"]["self-harm"] == []
        assert result["category_applied_input_types"]["toxicity"] == ["text"]
    assert results[1]["category_scores"]["toxicity"] == 0.75


def test_moderations_take_openai_parts_as_one_input(call):
    parts = [{"type": "text", "text": "fine"}, {"type": "text", "text": "BAD"}]
    (result,) = call("/v1/moderations", {"input": parts}).json()["results"]
    assert result["flagged"] is True
    assert len(call("/v1/moderations", {"input": "fine"}).json()["results"]) == 1
    refused(call("/v1/moderations", {"input": [{"type": "image_url", "image_url": {"url": "x"}}]}), 400)


def test_a_text_that_cannot_be_judged_is_an_error_and_not_an_answer(call):
    """A client that tests `if flagged` would let it pass."""
    error = refused(call("/v1/moderations", {"input": ["fine", "UNSCORABLE"]}), 400)
    assert error["message"] == "the input at index 1 can't be judged: too_odd: no tokens"
    assert (error["param"], error["code"]) == ("input", "too_odd")
    refused(call("/v1/moderations", {"input": "UNSCORABLE"}), 400)


class Classes(Scorer):
    """A scorer with classes that takes every text."""

    Settings = ScorerSettings
    unit = "probability"
    packages = ()

    def score_all(self, texts):
        return [Scored(0.25)] * len(texts)

    def class_scores(self, texts):
        return [MILD] * len(texts)


def test_a_text_too_long_to_be_judged_is_too_large():
    served = ServedScorer(scorer={"class_name": f"{__name__}:Classes", "name": "toxicity"}, max_text_chars=10)
    call = caller({}, {"toxicity": LocalScorer(served)}, toxicity="toxicity")
    assert call("/v1/moderations", {"input": "x" * 10}).json()["results"][0]["flagged"] is False
    for sent in ("x" * 11, ["fine", "x" * 11], [{"type": "text", "text": "x" * 5}, {"type": "text", "text": "x" * 5}]):
        error = refused(call("/v1/moderations", {"input": sent}), 413)
        assert "has 11 characters, the limit is 10; send it in parts" in error["message"]
        assert error["code"] == "too_long"


def test_presidio_gets_its_entities_for_a_text_and_lists_for_a_list(call):
    (email, skype, phone) = call("/analyze", {"text": "mail a@b or 555", "language": "en"}).json()
    assert email == {"entity_type": "EMAIL_ADDRESS", "start": 5, "end": 9, "score": 1.0, "analysis_explanation": None}
    assert (skype["entity_type"], phone["entity_type"]) == ("SKYPE_NAME", "PHONE_NUMBER")
    both = call("/analyze", {"text": ["mail a@b or 555", ""], "language": "en"}).json()
    assert [len(results) for results in both] == [3, 0]


def test_presidio_filters_entities_and_allowed_texts(call):
    body = {"text": "mail a@b or 555", "language": "en"}
    assert [r["entity_type"] for r in call("/analyze", {**body, "entities": ["PHONE_NUMBER"]}).json()] == [
        "PHONE_NUMBER"
    ]
    assert len(call("/analyze", {**body, "allow_list": ["555"]}).json()) == 2
    assert call("/analyze", {**body, "score_threshold": 1.1}).json() == []
    assert refused(call("/analyze", {**body, "entities": ["UK_NHS"]}), 400)["param"] == "entities"
    assert refused(call("/analyze", {**body, "language": "de"}), 400)["param"] == "language"
    assert "EMAIL_ADDRESS" in call("/supportedentities?language=en").json()


def test_presidio_takes_an_empty_list_of_entities_for_all(call):
    body = {"text": "mail a@b or 555", "language": "en"}
    assert call("/analyze", {**body, "entities": []}).json() == call("/analyze", body).json() != []


@pytest.fixture
def presidio():
    """A function that returns the client's calls, with the real scorer behind them."""
    scorers = []

    def calls(**settings):
        served = ServedScorer(scorer={"class_name": "PIIScorer", **settings})
        scorers.append(LocalScorer(served))
        return caller({}, {"pii": scorers[-1]}, pii="pii", pii_types=served.span_types)

    yield calls
    for scorer in scorers:
        scorer.close()


def test_presidio_names_only_entities_that_the_scorer_can_find(presidio):
    american, british, strict = presidio(mode="paper"), presidio(locale="en_GB", mode="paper"), presidio()
    entities = [call("/supportedentities").json() for call in (american, british, strict)]
    assert not any("PERSON" in known for known in entities)
    assert ["US_SSN" in known for known in entities] == [True, False, True]
    assert ["UK_NINO" in known for known in entities] == [False, True, False]
    assert ["IP_ADDRESS" in known for known in entities] == [False, False, True]
    assert "spacy_entity" not in american("/recognizers").json()
    body = {"text": "Ada, AB 12 34 56 C", "language": "en"}
    error = refused(american("/analyze", {**body, "entities": ["PERSON"]}), 400)
    assert "'PERSON' is not supported" in error["message"]
    assert [one["entity_type"] for one in british("/analyze", {**body, "entities": ["UK_NINO"]}).json()] == ["UK_NINO"]
    chosen = presidio(entities=["iban", "email"])
    assert chosen("/supportedentities").json() == ["EMAIL_ADDRESS", "IBAN_CODE"]
    with_model = ServedScorer(scorer={"class_name": "PIIScorer", "spacy_model": "en_core_web_sm"})
    call = caller({}, {"pii": Personal()}, pii="pii", pii_types=with_model.span_types)
    assert "PERSON" in call("/supportedentities").json()


def test_presidio_gets_the_confidence_of_each_detection(presidio):
    strict, paper = presidio(), presidio(mode="paper")
    body = {"text": "GB29 NWBK 6016 1331 9268 19, ada@example.org, 0431 19 97 94", "language": "en"}
    scores = {one["entity_type"]: one["score"] for one in strict("/analyze", body).json()}
    assert 1 > scores["IBAN_CODE"] > scores["EMAIL_ADDRESS"] > scores["PHONE_NUMBER"] >= 0.5
    sure = strict("/analyze", {**body, "score_threshold": scores["EMAIL_ADDRESS"]}).json()
    assert [one["entity_type"] for one in sure] == ["IBAN_CODE", "EMAIL_ADDRESS"]
    assert {one["score"] for one in paper("/analyze", body).json()} == {1.0}


@pytest.mark.parametrize("locale", ["en_US", "en_GB", "en_CA"])
def test_every_detector_of_the_pii_scorer_has_an_entity(locale):
    settings = {"class_name": "PIIScorer", "locale": locale, "mode": "strict", "spacy_model": "en_core_web_sm"}
    assert set(ServedScorer(scorer=settings).span_types) <= set(PRESIDIO_ENTITIES)


def test_presidio_counts_characters_as_python_does_however_many_bytes_or_code_units_they_have():
    scorer = LocalScorer(ServedScorer(scorer={"class_name": "PIIScorer"}))
    call = caller({}, {"pii": scorer}, pii="pii")
    text = "\U0001f600 caf\u00e9 \U0001f468\u200d\U0001f469\u200d\U0001f467 mail ann@example.com \U0001f680 now"
    for raw in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        content = f'{{"language": "en", "text": {raw}}}'.encode()
        (found,) = call("/analyze", content=content, headers={"Content-Type": "application/json"}).json()
        assert text[found["start"] : found["end"]] == "ann@example.com"
    scorer.close()


def test_without_the_scorer_the_endpoints_say_so():
    call = caller({}, {})
    assert "no toxicity scorer" in refused(call("/v1/moderations", {"input": "x"}), 404)["message"]
    assert "no PII scorer" in refused(call("/analyze", {"text": "x", "language": "en"}), 404)["message"]
    assert analyze(call).json()["error"]["status"] == "NOT_FOUND"
