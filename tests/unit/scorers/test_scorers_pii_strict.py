"""What `mode: strict` of the PII scorer finds, and what it leaves, beside the mode of the paper."""

import json
import time

import places
import pytest

from phf_ray.errors import ConfigError
from phf_ray.scorers.build import build_scorer, scorer_settings
from phf_ray.scorers.pii import PIIScorer

STRICT = build_scorer({"class_name": "PIIScorer", "mode": "strict"})
PAPER = build_scorer({"class_name": "PIIScorer"})
GOLDEN = json.loads((places.GOLDEN / "pii.json").read_text(encoding="utf-8"))
CARD = "4012888888881881"


def found(text, scorer=STRICT):
    return [(span.type, text[span.begin : span.end]) for span in scorer.spans(text)]


@pytest.mark.parametrize(
    "text",
    [
        CARD, f"{CARD} is mine.", f"Pay with\n{CARD}\n", f"({CARD})", f"card={CARD}", f"card:{CARD};", f'"{CARD}"',
        f"#{CARD}", f"1,{CARD},12/25", f"Card 1 {CARD}.",
    ],
)  # fmt: skip
def test_a_card_number_is_found_wherever_it_stands(text):
    assert found(text) == [("credit_card", CARD)]


@pytest.mark.parametrize(
    "number",
    [
        "4012 8888 8888 1881", "4012-8888-8888-1881", "4012\u00a08888\u00a08888\u00a01881", "3782 822463 10005",
        "378282246310005", "3056 930902 5904", "30569309025904", "4222222222222", "5555555555554444",
        "2223003122003222", "6011111111111117", "3530111333300000",
    ],
)  # fmt: skip
def test_card_numbers_of_all_brands_are_found_in_their_groups(number):
    for text in (number, f"({number})", f"Number: {number}, valid 12/25"):
        assert found(text) == [("credit_card", number)]


@pytest.mark.parametrize(
    "text",
    [
        "4012888888881882", "4012 8888 8888 1882",  # check digit
        f"1{CARD}", f"{CARD}1", f"0.{CARD}", f"1234-{CARD[:4]}-8888-8888-1881",  # part of another number
        "4012 8888-8888 1881", "40 12888888881881", "9012888888881881",
    ],
)  # fmt: skip
def test_other_numbers_are_no_card_numbers(text):
    assert found(text) == []


def test_a_card_number_counts_in_every_segment_it_can_begin():
    """The paper's score depends on where the segmenter cuts."""
    texts = [f"My card: {CARD}", f"{CARD}"]
    assert [scored.score > 0 for scored in STRICT.score_all(texts)] == [True, True]
    assert [scored.score > 0 for scored in PAPER.score_all(texts)] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        "Adobe made it on 4 March 1990", "airborne on 4 March 1975", "stubborn on 4 March 1975",
        "Osborne, 4 March 1975", "A rebirth on 4 March 1975",
    ],
)  # fmt: skip
def test_a_word_that_holds_born_is_not_the_word(text):
    assert [kind for kind, _ in found(text)] == []
    assert [kind for kind, _ in found(text, PAPER)] == ["date_of_birth"]


@pytest.mark.parametrize(
    "words",
    [
        "Born", "born:", "BORN", "birth", "Date of birth:", "date_of_birth:", "dateOfBirth:", "birthDate:", "Birthday",
        "birth date", "DOB", "dob:", "D.O.B.", "d.o.b. ",
    ],
)  # fmt: skip
def test_a_date_near_a_whole_word_is_a_date_of_birth(words):
    assert [kind for kind, _ in found(f"{words} 4 March 1975")] == ["date_of_birth"]
    assert [kind for kind, _ in found(f"{words}\n\n4 March 1975\n")] == ["date_of_birth"]


@pytest.mark.parametrize(
    "address",
    [
        "jos\u00e9@b\u00fccher.example", "jose\u0301@bu\u0308cher.example",
        "info@b\u00fccher.example", "jos\u00e9@example.org",
        "\u7528\u6237@\u4f8b\u5b50.\u5e7f\u544a",
        "\u0438\u0432\u0430\u043d@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444",
        "jos\u00e9.p\u00e9rez+a@mail.b\u00fccher.example",
    ],
)  # fmt: skip
def test_email_addresses_have_letters_of_any_script(address):
    for text in (address, f"Mail <{address}>.", f"'{address}', please", f"to:{address}!"):
        [(kinds, where)] = found(text)
        assert "email" in kinds.split("+")
        assert where == address
    assert all(where != address for _, where in found(address, PAPER))


def test_plain_email_addresses_are_those_of_the_paper():
    for text in (
        "Mail ada@example.org.",
        "ada at example dot org",
        "caf\u00e9: ada@example.org",
        "a @ b.example",
        "@\u00e9.de",
    ):
        assert found(text) == found(text, PAPER)


@pytest.mark.parametrize(
    "address",
    [
        "192.168.1.5", "8.8.8.8", "2001:db8::1",
        "fe80::1", "2001:0db8:85a3:0000:0000:8a2e:0370:7334", "::ffff:10.0.0.1",
    ],
)  # fmt: skip
def test_ip_addresses_are_found(address):
    for text in (address, f"from {address}.", f"ip={address}", f"IP:{address}", f"({address})", f'"{address}",'):
        assert found(text) == [("ip_address", address)]
    assert found(address, PAPER) == []


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "0.0.0.0", "::1", "::", "1.2.3",
        "1.2.3.4.5", "v1.2.3.4", "1.2.3.256", "12:30:45", "std::dead::beef", "00:1b:44:11:3a:b7",
    ],
)  # fmt: skip
def test_what_is_no_address_of_another_machine_is_left(text):
    assert found(text) == []


def test_ports_and_networks_belong_to_no_address():
    assert found("10.0.0.1:8080, 10.0.0.0/8, [2001:db8::1]:80") == [
        ("ip_address", "10.0.0.1"), ("ip_address", "10.0.0.0"), ("ip_address", "2001:db8::1"),
    ]  # fmt: skip


def test_strict_finds_what_the_paper_finds_in_the_golden_texts():
    for item in GOLDEN["values"]:
        strict = STRICT.spans(item["text"])
        for span in PAPER.spans(item["text"]):
            assert any(other.begin <= span.begin and span.end <= other.end for other in strict), item["text"]


def test_the_mode_is_part_of_the_identity_only_if_it_is_not_that_of_old_corpora():
    assert "mode" not in PAPER.identity().settings
    assert STRICT.identity().settings["mode"] == "strict"
    assert build_scorer({"class_name": "PIIScorer", "mode": "paper"}).identity() == PAPER.identity()
    with pytest.raises(ConfigError, match="mode: input should be 'paper' or 'strict'"):
        build_scorer({"class_name": "PIIScorer", "mode": "loose"})


@pytest.mark.parametrize("mode", ["paper", "strict"])
@pytest.mark.parametrize("locale", ["en_US", "en_GB", "en_CA"])
def test_the_types_of_spans_are_the_detectors(locale, mode):
    config = {"class_name": "PIIScorer", "locale": locale, "mode": mode}
    scorer = build_scorer(config)
    settings = scorer_settings(config)
    detectors = {detector.name for detector in scorer._scrubber._detectors.values()}
    assert PIIScorer.span_types(settings) == tuple(sorted(detectors))
    with_model = settings.model_copy(update={"spacy_model": "en_core_web_sm"})
    assert {*PIIScorer.span_types(with_model)} == detectors | {"spacy_entity"}


@pytest.mark.parametrize(
    "text",
    [
        "\u00e9" + "a." * 100_000, "\u00e9" + "a@" * 100_000,
        "\u00e9@" + "a." * 100_000, "1." * 100_000, "a:" * 100_000,
        ":" * 200_000, "4012-" * 40_000, "\u00e9" + "\u0301" * 200_000,
    ],
    ids=range(8),
)  # fmt: skip
def test_made_up_texts_take_no_minutes(text):
    started = time.process_time()
    STRICT.score_all([text])
    assert time.process_time() - started < 40
