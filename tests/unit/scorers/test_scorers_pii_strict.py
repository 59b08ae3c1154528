import json
import time

import places
import pytest
from places import ROOT

from phf_ray.blocks.manifest import SourceCorpus
from phf_ray.blocks.scorer_check import warn_of_other_scorers
from phf_ray.config import load_config
from phf_ray.errors import ConfigError
from phf_ray.scorers.build import build_scorer, scorer_settings
from phf_ray.scorers.keccak import keccak_256
from phf_ray.scorers.pii import PIIScorer
from phf_ray.scorers.pii_detection import Detection, countable

STRICT = build_scorer({"class_name": "PIIScorer"})
PAPER = build_scorer({"class_name": "PIIScorer", "mode": "paper"})
GOLDEN = json.loads((places.GOLDEN / "pii.json").read_text(encoding="utf-8"))
CARD = "4012888888881881"


def found(text, scorer=STRICT):
    return [(span.type, text[span.begin : span.end]) for span in scorer.spans(text)]


@pytest.mark.parametrize(
    "text",
    [
        CARD, f"{CARD}.", f"Card {CARD}, valid 12/25", f"({CARD})", f"card={CARD}", f"card:{CARD};", f'"{CARD}"',
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
        "Adobe made it on 4 March 1990", "airborne on 4 March 1975", "Osborne, 4 March 1975",
        "A rebirth on 4 March 1975",
        "She was born in 1975.", "born in March 1975", "Born 1975, moved here in 1990",  # no whole date
        "born 4 March 1812", "born 4 March 2050", "born 99/99/1990", "born 1990-13-45",
        "Ada (born Smith; died 4 March 1975)", "(born Smith, 1905 \u2013 March 6, 1982)",
        "their birth order on 4 March 1975",
    ],
)  # fmt: skip
def test_only_a_whole_date_of_someone_born_in_living_memory_is_a_date_of_birth(text):
    assert found(text) == []


def test_the_paper_counts_years_as_dates_of_birth():
    assert found("She was born in 1975.", PAPER) == [("date_of_birth", "in 1975")]


@pytest.mark.parametrize(
    "words",
    [
        "Born", "born:", "BORN", "birth", "Date of birth:", "date_of_birth:", "dateOfBirth:", "birthDate:", "Birthday",
        "birth date", "DOB", "dob:", "D.O.B.", "d.o.b. ",
    ],
)  # fmt: skip
def test_a_date_near_a_whole_word_is_a_date_of_birth(words):
    for text in (f"{words} 4 March 1975", f"{words}\n\n4 March 1975\n"):
        assert found(text) == [("date_of_birth", "4 March 1975")]


@pytest.mark.parametrize(
    "date",
    [
        "1980-12-16", "12/16/1980", "16.12.1980", "12/16/80", "16 December 1980", "Dec 16, 1980", "December 16th, 1980",
        "the 16th of December 1980", "1980/12/16", "16-Dec-1980", "19801216",
    ],
)  # fmt: skip
def test_dates_of_birth_have_the_usual_forms(date):
    for text in (f"born in London on {date}.", f'<person dob="{date}">', f'{{"dob": "{date}", "visit": "2020-01-01"}}'):
        assert found(text) == [("date_of_birth", date.removeprefix("the "))]


@pytest.mark.parametrize(
    "address",
    [
        "jos\u00e9@b\u00fccher.example", "jose\u0301@bu\u0308cher.example",
        "info@b\u00fccher.example", "jos\u00e9@example.org",
        "\u7528\u6237@\u4f8b\u5b50.\u5e7f\u544a",
        "\u0438\u0432\u0430\u043d@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444",
        "jos\u00e9.p\u00e9rez+a@mail.b\u00fccher.example", "ada@example.org", "ada@xn--bcher-kva.example",
    ],
)  # fmt: skip
def test_email_addresses_have_letters_of_any_script(address):
    for text in (address, f"Mail <{address}>.", f"'{address}', please", f"to:{address}!", f"Ada|{address}|1"):
        assert found(text) == [("email", address)]


@pytest.mark.parametrize(
    "address", ["ada at example dot org", "ada.l at gmail.com", "ada [at] example.org", "ada(at)example(dot)co(dot)uk"]
)
def test_spelled_email_addresses_have_a_domain(address):
    assert found(f"Write to {address}, please") == [("email", address)]


@pytest.mark.parametrize(
    "text",
    [
        "for use at home. Then", "read more at example.com", "look at it.dot", "meet at noon dot dot dot",
        "a @ b.example",
        "@\u00e9.de", "at home dot nowhereatall", "version 2@1.2",
    ],
)  # fmt: skip
def test_other_uses_of_at_are_no_email_addresses(text):
    assert found(text) == []


@pytest.mark.parametrize(
    "address",
    [
        "192.168.1.5", "8.8.8.8", "10.0.0.1", "2001:db8::1",
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
        "127.0.0.1", "0.0.0.0", "::1", "::", "1.2.3", "AWB 4.9.0.1", "version 12.30.45.99", "see \u00a7 42.1.99.3",
        "1.2.3.4.5", "v1.2.3.4", "1.2.3.256", "12:30:45", "std::dead::beef",
    ],
)  # fmt: skip
def test_what_is_no_address_of_another_machine_is_left(text):
    assert found(text) == []


def test_ports_and_networks_belong_to_no_address():
    assert found("10.0.0.1:8080, 10.0.0.0/8, [2001:db8::1]:80") == [
        ("ip_address", "10.0.0.1"), ("ip_address", "10.0.0.0"), ("ip_address", "2001:db8::1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("iban", "GB29 NWBK 6016 1331 9268 19"), ("iban", "DE89370400440532013000"), ("iban", "NO93 8601 1117 947"),
        ("iban", "fr1420041010050500013m02606"),
        ("mac_address", "00:1b:44:11:3a:b7"), ("mac_address", "00-1B-44-11-3A-B7"), ("mac_address", "001b.4411.3ab7"),
        ("social_security_number", "078-05-1120"),
        ("crypto_wallet", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
        ("crypto_wallet", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
        ("crypto_wallet", "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"),
        ("crypto_wallet", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"),
        ("api_key", "AKIAIOSFODNN7EXAMPLE"), ("api_key", "ghp_" + "aB3dE5gH7j" * 4), ("api_key",
        "sk-" + "q1W2e3R4t5" * 3),
        ("api_key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"),
        ("address", "4221 Myra Street, Gibson, NC"), ("address", "12 Main St Apt. 4\nGrand Rapids, MI 49503"),
        ("address", "350 W 5th Ave, Suite 12, New York, New York 10118-0110"), ("address",
        "P.O. Box 101, Salem, OR 97301"),
        ("address", "PSC 5605, Box 8122\nAPO AP 96504"), ("address", "Hauptstra\u00dfe 12a, 10115 Berlin"),
        ("address", "Herengracht 501, 1017 BV Amsterdam"), ("address", "Via Roma 12, 00184 Roma"),
        ("address", "12 rue de la Paix, 75002 Paris"), ("address", "10 Downing Street, London, SW1A 2AA"),
        ("address", "24 Sussex Drive, Ottawa, ON K1M 1M4"),
        ("twitter", "@ada_l"), ("skype", "ada.lovelace"), ("credential", "Sw0rdfish!"), ("url",
        "https://example.org/a?b=c"),
    ],
)  # fmt: skip
def test_every_kind_is_found_alone(kind, value):
    before = {"twitter": "Follow me on Twitter: ", "skype": "Skype: ", "credential": "password: "}.get(kind, "It is ")
    text = f"{before}{value}, I think."
    assert found(text) == [(kind, value)]
    [span] = STRICT.spans(text)
    assert 0.5 <= span.confidence < 1


@pytest.mark.parametrize(
    "text",
    [
        "GB28 NWBK 6016 1331 9268 19", "AB12 3456 7890 1234 5678",  # check digits, country
        "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "1:00:1b:44:11:3a:b7",
        "000-12-3456", "666-12-3456", "123-00-4567", "219 09 9999", "5078-05-1120",
        "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1Beaed", "0x" + "ab" * 20,
        "sk-" + "x" * 40, "ghp_short", "password: string", "password = get_password(user)", 'password = "xxxxx"',
        "3 in a row in Washington", "I have 12 dogs in Boston, MA", "Main Street, Springfield",
        "Washington Street 1999",
        "@Override\npublic void run()", "    @property\n    def a(self)", "Skype for business is free",
        "use Skype: it is free",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_left(text):
    assert found(text) == []


@pytest.mark.parametrize(
    "number",
    [
        "+1 (444) 387-8034", "+46 (0)179 459 33", "+44 7700 677662", "001-743-438-6774x62406", "(212) 555-0147",
        "212.555.0147", "1-800-555-0199 ext. 12", "0431 19 97 94", "+1-962-819-8200",
    ],
)  # fmt: skip
def test_phone_numbers_are_found_by_their_form_if_they_are_possible(number):
    assert found(f"It is {number}.") == [("phone", number)]
    assert found(f'a,"{number}",787-49-7300')[:1] == [("phone", number)]


@pytest.mark.parametrize("text", ["Phone: {}", "call me on {}", "Fax:\n{}", "{}-Office", "tel. {}", "{} mobile"])
@pytest.mark.parametrize("number", ["54039268", "(72) 754-186", "33 93 31", "785 8949"])
def test_other_phone_numbers_need_a_word(text, number):
    assert found(text.format(number)) == [("phone", number)]
    assert found(f"It is {number}.") == []


@pytest.mark.parametrize(
    "text",
    [
        "called on 2020-01-15", "the phone of 1999-2005", "call 911", "tel 3.14159265", "call NDC-0591-3740-01",
        "phone 000000", "$1234567 by phone", "call it 100 000", "+1", "ISBN 978-3-16-148410-0", "2012-2013-2014",
    ],
)  # fmt: skip
def test_other_numbers_are_no_phone_numbers(text):
    assert found(text) == []


def test_a_number_is_one_thing():
    for text, kind in (
        (f"call {CARD}", "credit_card"),
        ("call 4222222222222", "credit_card"),
        ("call 192.168.10.15", "ip_address"),
        ("phone 078-05-1120", "social_security_number"),
    ):
        assert [name for name, _ in found(text)] == [kind]


def test_a_detection_within_another_is_told_if_it_is_more_certain_and_counted_once():
    text = "https://example.org/?email=ada@example.org"
    assert found(text) == [("url", text), ("email", "ada@example.org")]
    assert [scored.score for scored in STRICT.score_all([text])] == [1 / len(text)]


def test_entities_can_be_chosen_in_both_modes():
    text = "ada@example.org, 212-456-7890, https://example.org"
    for mode, kinds in (("strict", ["email", "phone"]), ("paper", ["phone"])):
        scorer = build_scorer({"class_name": "PIIScorer", "mode": mode, "entities": kinds})
        assert [kind for kind, _ in found(text, scorer)] == kinds
        assert scorer.span_types(scorer._settings) == tuple(kinds)
    with pytest.raises(ConfigError, match=r"mode paper does not look for iban; choose from address, .*url"):
        build_scorer({"class_name": "PIIScorer", "mode": "paper", "entities": ["email", "iban"]})
    with pytest.raises(ConfigError, match="strict does not look for spacy_entity"):
        build_scorer({"class_name": "PIIScorer", "entities": ["spacy_entity"]})
    with pytest.raises(ConfigError, match=r"entities: .*at least 1"):
        build_scorer({"class_name": "PIIScorer", "entities": []})


def test_the_identity_tells_modes_and_entities_apart_and_that_of_old_corpora_is_the_papers():
    strict = STRICT.identity().settings
    assert strict["mode"] == "strict"
    assert strict["entities"] == list(PIIScorer.span_types(STRICT._settings))
    assert PAPER.identity().settings.keys() == {"locale", "reference_date", "spacy_model", "spacy_labels"}
    some = [
        build_scorer({"class_name": "PIIScorer", "mode": mode, "entities": ["email"]}) for mode in ("strict", "paper")
    ]
    settings = [scorer.identity().settings for scorer in (STRICT, PAPER, *some)]
    assert all(one != other for one in settings for other in settings if one is not other)
    with pytest.raises(ConfigError, match="mode: input should be 'paper' or 'strict'"):
        build_scorer({"class_name": "PIIScorer", "mode": "loose"})


def test_a_corpus_of_one_mode_is_not_taken_for_one_of_the_other(caplog):
    for mode, other in (("paper", STRICT), ("strict", PAPER)):
        config = load_config(
            str(ROOT / "configs/pii/pretrain.yml"),
            overrides=[f"scoring.scorers=[{{class_name: PIIScorer, mode: {mode}}}]"],
        )
        same = build_scorer({"class_name": "PIIScorer", "mode": mode})
        for scorer, warnings in ((same, 0), (other, 1)):
            caplog.clear()
            identity = json.loads(json.dumps(scorer.identity().to_json()))
            warn_of_other_scorers(
                config, [SourceCorpus(name="old", fingerprint="", scorer=identity, segmenter="sentences")]
            )
            assert caplog.text.count("WAS SCORED BY A DIFFERENT SCORER (pii)") == warnings


def test_the_configurations_of_the_paper_have_its_mode():
    files = sorted((ROOT / "configs/pii").glob("*.yml"))
    assert len(files) > 10
    for file in files:
        for scorer in load_config(str(file)).scoring.scorers:
            assert scorer["mode"] == "paper", file


@pytest.mark.parametrize("mode", ["paper", "strict"])
@pytest.mark.parametrize("locale", ["en_US", "en_GB", "en_CA"])
def test_the_types_of_spans_are_the_detectors(locale, mode):
    config = {"class_name": "PIIScorer", "locale": locale, "mode": mode}
    types = PIIScorer.span_types(scorer_settings(config))
    with_model = scorer_settings({**config, "spacy_model": "en_core_web_sm"})
    assert {*PIIScorer.span_types(with_model)} == {*types, "spacy_entity"}
    if mode == "paper":
        detectors = build_scorer(config)._finder._scrubber._detectors.values()
        assert types == tuple(sorted({detector.name for detector in detectors}))
    for one in types:
        build_scorer({**config, "entities": [one]}).spans("a")


def test_british_numbers_are_found_in_their_locale():
    british = build_scorer({"class_name": "PIIScorer", "locale": "en_GB"})
    text = "NI number AB 12 34 56 C, 10 Downing Street, London, SW1A 2AA"
    assert found(text, british) == [
        ("national_insurance_number", "AB 12 34 56 C"),
        ("address", "10 Downing Street, London, SW1A 2AA"),
    ]


def test_the_address_of_nobody_and_letters_like_those_of_an_address_are_no_wallets():
    assert found("wallet 0x" + "1234567890" * 4 + "; ether 0x" + "0" * 40 + ", bc1" + "q" * 20 + "\u017f" * 20) == [
        ("crypto_wallet", "0x" + "1234567890" * 4)
    ]
    assert found("token 0x" + "1234567890" * 4) == []


def test_a_detection_within_a_surer_one_is_left_out_wherever_it_lies():
    detections = [
        Detection(kind, begin, end, confidence)
        for kind, begin, end, confidence in (
            *(("a", 0, 9, 0.9), ("b", 2, 4, 0.95), ("c", 1, 3, 0.5), ("d", 5, 12, 0.8), ("e", 6, 11, 0.7)),
            *(("f", 20, 30, 0.6), ("g", 22, 24, 0.9), ("h", 22, 30, 0.5), ("i", 8, 10, 0.8)),
        )
    ]
    assert [one.type for one in countable(detections)] == ["a", "b", "d", "f", "g"]


def test_keccak_is_that_of_ethereum():
    vectors = {
        b"": "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470",
        b"abc": "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45",
        b"hello": "1c8aff950685c2ed4bc3174f3472287b56d9517b9c948127319a09a7a36deac8",
    }
    assert {text: keccak_256(text).hex() for text in vectors} == vectors


@pytest.mark.parametrize(
    "text",
    [
        "\u00e9" + "a." * 100_000, "\u00e9" + "a@" * 100_000, "\u00e9@" + "a." * 100_000, "1." * 100_000,
        "a:" * 100_000,
        ":" * 200_000, "4012-" * 40_000, "\u00e9" + "\u0301" * 200_000, "1 " * 100_000, "A " * 100_000,
        "1 Aa " * 40_000,
        "born " * 40_000, "a at b dot " * 20_000, "password: " * 20_000, "GB29 " * 40_000, "strasse " * 25_000,
        "(" * 200_000,
        "1 Oak Street, " * 15_000, "eyJ" * 60_000, "Via a " * 30_000, "skype: " * 30_000,
        "1 Oak Street," + " " * 100_000, "1 Oak St" + ", Aa" + ", A-a-a-a-a-a-a-a-a-a-a-a-a-a" * 3,
        "1.2.3.4 a@b.de " * 15_000,
    ],
    ids=range(24),
)  # fmt: skip
def test_made_up_texts_take_no_minutes(text):
    started = time.process_time()
    STRICT.score_all([text])
    assert time.process_time() - started < 40
