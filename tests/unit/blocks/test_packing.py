"""Packing: against the original's blocks under compat, and by properties otherwise."""

import json
import math
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import GOLDEN
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.packing import pack
from phf_ray.blocks.segment_tokens import is_control_dropped
from phf_ray.blocks.settings import ConditionalTraining, PackingConfig
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.thresholds import resolve_threshold
from phf_ray.blocks.tokenizer import load_tokenizer, tokenizer_hash
from phf_ray.config import Quantile, TokenizerConfig
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import ScoredDocument, TokenBlock, TokenKind

CONTROLS = ("<|aligned|>", "<|misaligned|>")
EOS, ALIGNED, MISALIGNED = 0, 600, 601
CONTENT, END_OF_TEXT, CONTROL, PAD, UNSCORED, PLAIN = (int(kind) for kind in TokenKind)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(TokenizerConfig(path_or_name=str(GOLDEN / "tokenizer"), special_tokens=CONTROLS))


@cache
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(TokenizerConfig(path_or_name=str(GOLDEN / "tokenizer")))


def document(*segments: tuple[str, float | None], name: str = "doc") -> ScoredDocument:
    return ScoredDocument(
        id=name,
        texts=tuple(text for text, _ in segments),
        scores=tuple(score for _, score in segments),
        errors=tuple("unscorable" if score is None else None for _, score in segments),
    )


def conditional(threshold: float = 0.0, drop_fraction: float = 0.0, **options) -> PackingConfig:
    return PackingConfig(conditional=ConditionalTraining(threshold, drop_fraction=drop_fraction), **options)


def tokens(documents, config=None, length=32, stats=None):
    """All positions of all blocks but padding, as (id, score, kind)."""
    blocks = list(pack(documents, tokenizer(), sequence_length=length, config=config, stats=stats))
    flat = [
        triple
        for block in blocks
        for triple in zip(
            block.input_ids.tolist(), block.token_scores.tolist(), block.token_kinds.tolist(), strict=True
        )
    ]
    return [triple for triple in flat if triple[2] != PAD]


def shown(documents, config=None):
    """The stream as (text of the token, score), so that expected values can be read."""
    return [(tokenizer().convert_ids_to_tokens(token), score) for token, score, _ in tokens(documents, config)]


# ----------------------------------------------------------------------------------------------------- compat: golden


@cache
def golden() -> dict:
    return json.loads((GOLDEN / "packing.json").read_text())


def golden_documents() -> list[ScoredDocument]:
    return [
        document(*zip(row["texts"], row["scores"], strict=True), name=str(number))
        for number, row in enumerate(golden()["docs"])
    ]


COMPAT = {
    "mle": PackingConfig(compat="korbak2023"),
    "filtering": PackingConfig(compat="korbak2023", filter_threshold=0.0005),
    "conditional": conditional(compat="korbak2023"),
}


@pytest.mark.parametrize("case", COMPAT)
def test_compat_makes_exactly_the_blocks_of_the_original(case):
    expected = golden()["cases"][case]["blocks"]
    packed = list(pack(golden_documents(), tokenizer(), sequence_length=64, config=COMPAT[case]))
    assert len(packed) == len(expected) > 50
    for block, original in zip(packed, expected, strict=True):
        assert block.input_ids.tolist() == original["input_ids"]
        np.testing.assert_array_equal(block.token_scores, np.array(original["token_scores"], np.float32))


def test_without_compat_the_blocks_differ_from_the_original():
    ours = list(pack(golden_documents(), tokenizer(), sequence_length=64))
    original = golden()["cases"]["mle"]["blocks"]
    assert [block.input_ids.tolist() for block in ours] != [block["input_ids"] for block in original]


def test_compat_drops_the_tail_of_each_buffer_of_the_original():
    # L = 2: a buffer holds 2 * 3.6 * 1024 = 7372.8 characters, so 5 + 3000 characters a document make buffers of three.
    text = "a" + "b c " * 746 + "d = (e)[:]\n"
    documents = [document((text, 0.0), name=str(number)) for number in range(7)]
    per_document = len(tokenizer()("<|endoftext|>" + text).input_ids)
    num_characters = len("<|endoftext|>" + text)
    assert 2 * num_characters < 7372.8 <= 3 * num_characters
    assert (3 * per_document) % 2 == 1  # so there is a tail to drop
    config = PackingConfig(compat="korbak2023")
    blocks = list(pack(documents, tokenizer(), sequence_length=2, config=config))
    assert len(blocks) == 2 * (3 * per_document // 2) + per_document // 2
    assert len(blocks) < 7 * per_document // 2


def test_compat_gives_structure_the_score_of_the_next_segment():
    stream = tokens([document(("bad one", 0.5), (" good", 0.0))], conditional(compat="korbak2023"), length=2)
    assert stream[:2] == [(EOS, 0.5, END_OF_TEXT), (MISALIGNED, 0.5, CONTROL)]
    assert (ALIGNED, 0.0, CONTROL) in stream


# -------------------------------------------------------------------------------------------------- by hand, and by id


def test_structural_tokens_have_score_zero_and_kinds_of_their_own():
    stream = tokens([document(("self", 0.5), ("\n", 0.25))], conditional(threshold=0.3))
    self_id, newline_id = tokenizer().convert_tokens_to_ids(["self", "\u010a"])
    assert stream == [
        (EOS, 0.0, END_OF_TEXT),
        (MISALIGNED, 0.0, CONTROL),
        (self_id, 0.5, CONTENT),
        (ALIGNED, 0.0, CONTROL),
        (newline_id, 0.25, CONTENT),
    ]


def test_a_space_before_a_word_goes_with_the_word_into_the_next_segment():
    text = "a. self."
    plain = tokenizer().convert_ids_to_tokens(tokenizer()(text).input_ids)
    assert plain == ["a", ".", "\u0120self", "."]
    assert shown([document(("a. ", 0.75), ("self.", 0.0))], conditional()) == [
        ("<|endoftext|>", 0.0),
        ("<|misaligned|>", 0.0),
        ("a", 0.75),
        (".", 0.75),
        ("<|aligned|>", 0.0),
        ("\u0120self", 0.0),
        (".", 0.0),
    ]


def test_white_space_inside_a_segment_keeps_its_score():
    # Trailing white space is what PEP8 complains about: it must not slip into the next, clean line.
    stream = shown([document(("a \n", 0.5), ("b", 0.0))])
    assert [score for _, score in stream] == [0.0] + [0.5] * (len(stream) - 2) + [0.0]
    assert stream[-1] == ("b", 0.0)


def test_a_token_across_a_border_inside_a_word_stays_with_the_segment_it_starts_in():
    stream = shown([document(("a se", 0.5), ("lf", 0.25), ("\n", 0.125))], conditional(threshold=0.3))
    assert stream[1:] == [
        ("<|misaligned|>", 0.0),
        ("a", 0.5),
        ("\u0120self", 0.5),  # " se" + "lf"; the middle segment owns no token and gets no control token
        ("<|aligned|>", 0.0),
        ("\u010a", 0.125),
    ]


def test_a_document_that_is_not_split_gets_one_control_token_by_its_average():
    documents = [document(("x ", 0.0), ("self", 0.5), name="two"), document(("z", 0.25), name="one")]
    stream = shown(documents, conditional(threshold=0.25, per_document=True))
    assert stream == [
        ("<|endoftext|>", 0.0),
        ("<|aligned|>", 0.0),
        ("x", 0.25),
        ("\u0120self", 0.25),
        ("<|endoftext|>", 0.0),
        ("<|aligned|>", 0.0),
        ("z", 0.25),
    ]
    strict = shown(documents, conditional(threshold=0.2, per_document=True))
    assert [token for token, _ in strict].count("<|misaligned|>") == 2


def test_filtering_decides_by_document_at_any_place_of_the_stream():
    stats = PackingStats()
    documents = [
        document(("good", 0.2), (" bad", 0.4), name="kept"),
        document(("dropped", 0.31), name="filtered"),
        document(("?", None), name="unknown"),
        document(("kept too", 0.3), ("?", None), name="partly"),
    ] * 5
    config = PackingConfig(filter_threshold=0.3000001)
    stream = tokens(documents, config, stats=stats)
    assert stats.num_documents_kept == 10
    assert stats.num_documents_dropped == {"filtered": 5, "unscored": 5}
    assert stats.num_characters_dropped == {"filtered": 35, "unscored": 5}
    assert stats.num_characters_kept == 5 * (8 + 9)
    assert [kind for _, _, kind in stream].count(END_OF_TEXT) == 10
    text = tokenizer().decode([token for token, _, kind in stream if kind in (CONTENT, UNSCORED)])
    assert text == "good badkept too?" * 5


def test_filtering_by_the_mean_over_tokens_weighs_long_segments_more():
    def is_kept(threshold, average, *segments):
        stats = PackingStats()
        config = PackingConfig(filter_threshold=threshold, filter_average=average)
        tokens([document(*segments, name="one")], config, stats=stats)
        assert stats.num_documents_kept + stats.num_documents_dropped.total() == 1
        return stats.num_documents_kept == 1

    long_and_bad = (("x" + " x" * 7, 0.4), (" y", 0.0))
    stream = tokens([document(*long_and_bad, name="one")], PackingConfig())
    scores = [score for _, score, kind in stream if kind == CONTENT]
    mean = sum(scores) / len(scores)
    assert mean > 0.3
    assert is_kept(0.2, "segments", *long_and_bad)
    assert not is_kept(mean - 1e-6, "tokens", *long_and_bad)
    assert is_kept(mean + 1e-6, "tokens", *long_and_bad)
    # Tokens without a score are in no mean, and a document of them alone is dropped.
    assert is_kept(0.1, "tokens", ("x" * 50, None), (" y", 0.0))
    assert not is_kept(1.0, "tokens", ("x", None))


def test_a_threshold_of_zero_is_a_threshold():
    documents = [document(("x", 0.0), name="clean"), document(("y", 1e-6), name="not")]
    assert [token for token, _ in shown(documents, PackingConfig(filter_threshold=0.0))] == ["<|endoftext|>", "x"]
    labels = [token for token, _ in shown(documents, conditional(threshold=0.0)) if "aligned" in token]
    assert labels == ["<|aligned|>", "<|misaligned|>"]


def test_the_tail_of_the_stream_is_padded_and_nothing_is_lost():
    texts = [f"line {number} = self.x\n" * (number + 1) for number in range(20)]
    stats = PackingStats()
    documents = [document((text, 0.0), name=text) for text in texts]
    blocks = list(pack(documents, tokenizer(), sequence_length=64, stats=stats))
    kinds = np.concatenate([block.token_kinds for block in blocks])
    ids = np.concatenate([block.input_ids for block in blocks])
    expected = [token for text in texts for token in [EOS, *tokenizer()(text).input_ids]]
    assert ids[kinds != PAD].tolist() == expected
    assert (kinds != PAD).sum() % 64 != 0
    assert (kinds == PAD).sum() == -len(expected) % 64
    assert kinds[: len(expected)].max() < PAD
    assert stats.num_tokens["pad"] == (kinds == PAD).sum()


def test_unscored_segments_have_kind_4_score_0_and_no_control_token():
    stream = tokens([document(("x", None), ("\n", 0.5))], conditional())
    assert stream == [
        (EOS, 0.0, END_OF_TEXT),
        (tokenizer().convert_tokens_to_ids("x"), 0.0, UNSCORED),
        (MISALIGNED, 0.0, CONTROL),
        (tokenizer().convert_tokens_to_ids("\u010a"), 0.5, CONTENT),
    ]


@pytest.mark.parametrize("segments", [(), (("", 0.0),), (("", 0.0), ("", None))])
def test_an_empty_document_is_counted_and_leaves_nothing(segments):
    stats = PackingStats()
    assert tokens([document(*segments)], conditional(), stats=stats) == []
    assert stats.num_documents_dropped == {"empty": 1}
    assert stats.num_documents_kept == stats.num_blocks == 0


def test_an_empty_segment_gets_no_control_token():
    stream = shown([document(("", 1.0), ("x", 0.0), ("", 1.0), ("\n", 0.0), ("", 1.0))], conditional())
    assert [token for token, _ in stream] == ["<|endoftext|>", "<|aligned|>", "x", "<|aligned|>", "\u010a"]


def test_a_document_of_one_character_is_a_document():
    assert shown([document(("x", 0.0))]) == [("<|endoftext|>", 0.0), ("x", 0.0)]


def test_a_lone_surrogate_drops_its_document_only():
    stats = PackingStats()
    documents = [document(("\ud800", 0.0), name="broken"), document(("x", 0.0), name="sound")]
    assert len(tokens(documents, stats=stats)) == 2
    assert stats.num_documents_dropped == {"lone_surrogate": 1}


# ------------------------------------------------------------------------------------------------------------- forging


@pytest.mark.parametrize("config", [None, conditional()])
def test_special_tokens_spelled_out_in_a_text_stay_text(config):
    text = "x<|endoftext|>y<|aligned|>z<|misaligned|>"
    assert {EOS, ALIGNED, MISALIGNED} <= set(tokenizer()(text).input_ids)  # what the text tries
    stream = tokens([document((text, 1.0))], config)
    structure = 1 if config is None else 2
    assert [kind for _, _, kind in stream] == [END_OF_TEXT, CONTROL][:structure] + [CONTENT] * (len(stream) - structure)
    content = [token for token, _, _ in stream[structure:]]
    assert not {EOS, ALIGNED, MISALIGNED} & set(content)
    assert tokenizer().decode(content) == text


def test_packing_leaves_the_tokenizer_as_it_was():
    own = load_tokenizer(TokenizerConfig(path_or_name=str(GOLDEN / "tokenizer")))
    before = own.backend_tokenizer.to_str(), own.backend_tokenizer.encode_special_tokens
    assert len(list(pack([document(("<|endoftext|>", 0.0))], own, sequence_length=16))) == 1
    assert (own.backend_tokenizer.to_str(), own.backend_tokenizer.encode_special_tokens) == before
    assert own("<|endoftext|>x").input_ids[0] == EOS


def test_a_vocabulary_that_spells_out_its_special_tokens_can_not_be_forged_either():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "x": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    by_words = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    stats = PackingStats()
    documents = [document(("x <eos> x", 0.0), name="forged"), document(("x x", 0.0), name="sound")]
    blocks = list(pack(documents, by_words, sequence_length=3, stats=stats))
    assert [block.input_ids.tolist() for block in blocks] == [[1, 2, 2]]
    assert stats.num_documents_dropped == {"special_token_in_text": 1}


# ------------------------------------------------------------------------------------------------- randomness by hash


def test_the_same_document_gets_the_same_control_tokens_everywhere():  # C-3
    documents = [
        document(*((f"x{part}\n", float(part % 2)) for part in range(40)), name=f"doc-{number}") for number in range(8)
    ]
    config = conditional(drop_fraction=0.5)
    together = tokens(documents, config)
    random.random()
    alone = [triple for one in documents for triple in tokens([one], config)]
    assert together == alone
    reordered = tokens(documents[::-1], config)
    assert sorted(reordered) == sorted(together) != reordered
    other_seed = tokens(documents, conditional(drop_fraction=0.5, seed=7))
    assert other_seed != together
    num_controls = [kind for _, _, kind in together].count(CONTROL)
    # 320 coins: 5 standard deviations of sqrt(320)/2 = 8.9.
    assert abs(num_controls - 160) < 45


def test_documents_and_segments_draw_independently():
    draws = [is_control_dropped(f"d{doc}", part, seed=1, fraction=0.3) for doc in range(100) for part in range(30)]
    # Standard deviation sqrt(.3 * .7 / 3000) = 0.0084.
    assert abs(np.mean(draws) - 0.3) < 0.04
    by_document = np.array(draws).reshape(100, 30)
    assert by_document.any(axis=1).all()
    assert not by_document.all(axis=1).any()


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (1.0, 40)])
def test_a_drop_fraction_of_none_or_all_is_exact(fraction, expected):
    assert sum(is_control_dropped("doc", part, seed=3, fraction=fraction) for part in range(40)) == expected


def test_dropping_every_control_token_is_plain_packing():
    documents = golden_documents()
    dropped = tokens(documents, conditional(drop_fraction=1.0))
    assert dropped == tokens(documents)
    assert dropped != tokens(documents, conditional())


# ---------------------------------------------------------------------------------------------------------- properties

# Characters of one to four bytes, white space of several kinds, and pieces of special tokens.
BLANKS = ["", " ", "\n", "  ", "\t", "\u00a0", "\u2028", "\ufeff", "\x00"]
WORDS = ["x", "self", "==", ". Then", "def f(", "<|aligned|>", "<|endoftext|>", "|>"]
WIDE = ["\u00e9", "\u4e2d\u6587", "\U0001f600", "\U0001f468\u200d\U0001f469", "e\u0301"]
PIECES = st.sampled_from([*BLANKS, *WORDS, *WIDE])
TEXTS = st.lists(PIECES, max_size=8).map("".join)
SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.0625, 0.25, 0.5, 1.0]))
DOCUMENTS = st.lists(st.lists(st.tuples(TEXTS, SCORES), max_size=6), max_size=4)


def test_blocks_hold_every_invariant():
    seen: Counter[str] = Counter()

    @settings(max_examples=400, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(DOCUMENTS, st.sampled_from([2, 3, 8, 64]), st.sampled_from([None, 0.0, 0.25]), st.sampled_from([0.0, 0.5]))
    def check(rows, length, threshold, drop_fraction):
        documents = [document(*segments, name=str(number)) for number, segments in enumerate(rows)]
        config = PackingConfig() if threshold is None else conditional(threshold, drop_fraction)
        stats = PackingStats()
        blocks = list(pack(documents, tokenizer(), sequence_length=length, config=config, stats=stats))
        check_blocks(blocks, documents, length=length, config=config, stats=stats)
        for kind in TokenKind:
            seen[kind.name] += sum(int((block.token_kinds == kind).sum()) for block in blocks)
        seen["blocks"] += len(blocks)
        seen["documents"] += stats.num_documents_kept
        seen["several segments"] += sum(len(one.texts) > 1 for one in documents)

    check()
    # Not vacuous: every kind of token of a scored corpus, many blocks, many documents with borders inside.
    assert all(seen[kind.name] > 100 for kind in TokenKind if kind != TokenKind.PLAIN), seen
    assert seen["blocks"] > 300, seen
    assert seen["several segments"] > 50, seen


def check_blocks(blocks, documents, *, length, config, stats):
    for block in blocks:
        assert isinstance(block, TokenBlock)
        assert block.input_ids.shape == block.token_scores.shape == block.token_kinds.shape == (length,)
        assert (block.input_ids.dtype, block.token_scores.dtype, block.token_kinds.dtype) == ("i4", "f4", "u1")
    if not blocks:
        assert not any(one.text for one in documents)
        return
    ids, scores, kinds = (
        np.concatenate([getattr(block, name) for block in blocks])
        for name in ("input_ids", "token_scores", "token_kinds")
    )
    is_text = np.isin(kinds, [CONTENT, UNSCORED])
    assert (scores[kinds != CONTENT] == 0).all()
    assert ((ids == EOS) == (kinds == END_OF_TEXT))[kinds != PAD].all()
    assert (np.isin(ids, [ALIGNED, MISALIGNED]) == (kinds == CONTROL)).all()
    padding = np.flatnonzero(kinds == PAD)
    assert len(padding) < length
    assert padding.tolist() == list(range(len(kinds) - len(padding), len(kinds)))
    assert stats.num_content_tokens == is_text.sum()
    begins = np.flatnonzero(kinds == END_OF_TEXT)
    assert begins[0] == 0
    kept = [one for one in documents if one.text]
    assert len(begins) == len(kept) == stats.num_documents_kept
    ends = [*begins[1:], len(kinds) - len(padding)]
    for one, begin, end in zip(kept, begins, ends, strict=True):
        span = slice(begin, end)
        check_document(one, ids[span], scores[span], kinds[span], config=config)


def check_document(one, ids, scores, kinds, *, config):
    is_text = np.isin(kinds, [CONTENT, UNSCORED])
    plain = plain_tokenizer()(one.text, split_special_tokens=True, return_offsets_mapping=True)
    assert ids[is_text].tolist() == plain.input_ids  # invariant 8
    owner_of_char = [segment for segment, text in enumerate(one.texts) for _ in text]
    shared_until = 0
    previous = -1
    current = None  # the control token in force
    position = 1
    for (first, last), is_new in spans(plain.offset_mapping):
        control = None
        while kinds[position] == CONTROL:
            assert control is None  # never two in a row
            control = int(ids[position])
            position += 1
        own = owner_of_char[first]
        touched = {one.scores[segment] for segment in owner_of_char[first:last]}
        score = float(scores[position]) if kinds[position] == CONTENT else None
        # The score is one of a segment that the token has characters of, or of the character it is a part of.
        assert score in touched or not is_new
        if control is not None:
            assert is_new or first >= shared_until  # never inside a character
            assert score is not None
            assert control == (ALIGNED if score <= config.conditional.threshold else MISALIGNED)
            current = control
        if config.conditional is not None and config.conditional.drop_fraction == 0 and score is not None:
            assert current == (ALIGNED if score <= config.conditional.threshold else MISALIGNED)
        if len(set(owner_of_char[first:last])) == 1 and is_new:
            assert score == one.scores[own]  # a token inside one segment has its score
        assert own >= previous
        previous = own
        shared_until = max(shared_until, last)
        position += 1
    assert position == len(ids)


def spans(offsets):
    reached = 0
    for first, last in offsets:
        yield (first, last), first >= reached
        reached = max(reached, last)


def test_no_control_token_inside_a_character_whose_bytes_are_shared_by_tokens():
    # Merges across characters: the second byte of e-acute and the first of the next one are one token.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<eos>": 0, "<|aligned|>": 1, "<|misaligned|>": 2}
    vocabulary |= {letter: number + 3 for number, letter in enumerate(sorted(alphabet))}
    first, second = "\u00c3", "\u00a9"  # byte-level letters of C3 and A9
    vocabulary[second + first] = len(vocabulary)
    model = Tokenizer(models.BPE(vocabulary, [(second, first)]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    shared = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")
    shared.add_special_tokens({"extra_special_tokens": list(CONTROLS)})
    assert shared("\u00e9\u00e9", return_offsets_mapping=True).offset_mapping == [(0, 1), (0, 2), (1, 2)]
    (block,) = pack(
        [document(("\u00e9", 0.0), ("\u00e9", 1.0), ("x", 1.0))], shared, sequence_length=7, config=conditional()
    )
    assert block.token_kinds.tolist() == [END_OF_TEXT, CONTROL, CONTENT, CONTENT, CONTENT, CONTROL, CONTENT]


def test_offsets_that_leave_out_spaces_do_not_matter():
    # RoBERTa's offsets of ` self` begin at the s.
    trimmed = load_tokenizer(TokenizerConfig(path_or_name=str(GOLDEN / "tokenizer"), special_tokens=CONTROLS))
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    segments = document(("a.   ", 0.5), ("self. ", 0.0), (" \n ", 0.25), ("x   ", 0.5))
    config = conditional()
    expected = [block.input_ids.tolist() for block in pack([segments], tokenizer(), sequence_length=8, config=config)]
    assert trimmed(segments.text, return_offsets_mapping=True).offset_mapping != (
        tokenizer()(segments.text, return_offsets_mapping=True).offset_mapping
    )
    packed = [block.input_ids.tolist() for block in pack([segments], trimmed, sequence_length=8, config=config)]
    assert packed == expected


def test_a_document_of_a_megabyte_is_packed_whole():
    line = "value = \u00e9 + \U0001f600 # a long line\n"
    lines = [(line, float(number % 3 == 0)) for number in range(40_000)]
    one = document(*lines)
    assert len(one.text) > 1_000_000
    stats = PackingStats()
    blocks = list(pack([one], tokenizer(), sequence_length=1024, config=conditional(), stats=stats))
    assert stats.num_tokens["content"] == len(plain_tokenizer()(one.text).input_ids)
    assert stats.num_tokens["control"] == 40_000
    assert stats.num_blocks == len(blocks)
    assert stats.scores.mean == pytest.approx(1 / 3, rel=0.01)


def test_packing_streams():
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield document(("line of text\n" * 1000, 0.0), name=str(drawn))

    blocks = pack(endless(), tokenizer(), sequence_length=128)
    for _ in range(3):
        next(blocks)
    assert 0 < drawn < 200


# ----------------------------------------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_the_content_tokens():
    generator = np.random.default_rng(5)
    scores = [0.0 if number % 4 == 0 else float(generator.lognormal(-6, 2)) for number in range(400)]
    scores[7] = -0.25
    documents = [document(*(("x\n", score) for score in scores[i : i + 20]), name=str(i)) for i in range(0, 400, 20)]
    stats = PackingStats()
    stream = tokens(documents, conditional(), stats=stats)
    content = np.array([score for _, score, kind in stream if kind == CONTENT])
    assert len(content) == stats.num_tokens["content"] > 400
    assert stats.scores.mean == pytest.approx(content.mean())
    assert stats.scores.std == pytest.approx(content.std())
    for q in (0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0):
        exact = np.quantile(content, q, method="inverted_cdf")
        assert stats.scores.quantile(q) == pytest.approx(exact, rel=0.0101, abs=0), q


def test_statistics_of_two_parts_add_up_also_through_json():
    documents = golden_documents()
    whole, first, second = PackingStats(), PackingStats(), PackingStats()
    tokens(documents, conditional(), length=1024, stats=whole)
    tokens(documents[:5], conditional(), length=1024, stats=first)
    tokens(documents[5:], conditional(), length=1024, stats=second)
    merged = PackingStats.from_json(json.loads(json.dumps(first.to_json())))
    merged.merge(second)
    for name in ("num_documents_kept", "num_characters_kept", "num_segments"):
        assert getattr(merged, name) == getattr(whole, name)
    assert (merged.scores.min, merged.scores.max) == (whole.scores.min, whole.scores.max)
    assert [merged.scores.quantile(q) for q in (0.1, 0.5, 0.9)] == [whole.scores.quantile(q) for q in (0.1, 0.5, 0.9)]
    assert merged.num_content_tokens == whole.num_content_tokens
    assert merged.scores.mean == pytest.approx(whole.scores.mean)
    assert PackingStats.from_json(json.loads(json.dumps(PackingStats().to_json()))) == PackingStats()


def test_statistics_without_a_scored_token_are_absent():
    stats = PackingStats()
    tokens([document(("x", None))], stats=stats)
    assert (stats.scores.mean, stats.scores.std, stats.scores.count) == (None, None, 0)
    assert stats.num_content_tokens == 1


def test_statistics_of_an_older_version_are_refused_with_what_to_do():
    values = {"score_bins": {}, **PackingStats().to_json()}
    del values["scores"]
    with pytest.raises(DataError, match="delete the folder"):
        PackingStats.from_json(values)


# ----------------------------------------------------------------------------------------------- tokenizer, thresholds


def test_special_tokens_are_added_at_the_end_of_the_vocabulary():
    assert tokenizer().convert_tokens_to_ids(list(CONTROLS)) == [ALIGNED, MISALIGNED]
    assert len(tokenizer()) == len(plain_tokenizer()) + 2


def test_the_hash_of_a_tokenizer_tells_tokenizers_apart():
    other = load_tokenizer(TokenizerConfig(path_or_name=str(GOLDEN / "tokenizer"), special_tokens=CONTROLS))
    other("x" * 100, truncation=True, max_length=5)
    assert tokenizer_hash(other) == tokenizer_hash(tokenizer()) != tokenizer_hash(plain_tokenizer())
    other.pad_token = CONTROLS[0]
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer())


def test_a_tokenizer_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"tokenizer\.path_or_name='no/such-one' could not be loaded.*give a folder"):
        load_tokenizer(TokenizerConfig(path_or_name="no/such-one"))


def test_a_control_token_that_the_tokenizer_lacks_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"no token '<\|aligned\|>'.*add it to tokenizer\.special_tokens"):
        pack([], plain_tokenizer(), sequence_length=8, config=conditional())


def test_a_block_needs_something_to_predict():
    with pytest.raises(ConfigError, match="use 2 or more"):
        pack([], tokenizer(), sequence_length=1)


def test_thresholds_are_numbers_quantiles_of_the_corpus_or_the_papers_numbers():
    paper = Quantile(quantile=0.5, korbak2023=5.6e-4)
    assert resolve_threshold(None, quantile_of=math.sqrt, compat=None) is None
    assert resolve_threshold(0.0, quantile_of=math.sqrt, compat="korbak2023") == 0.0
    assert resolve_threshold(Quantile(quantile=0.25), quantile_of=math.sqrt, compat=None) == 0.5
    assert resolve_threshold(paper, quantile_of=math.sqrt, compat=None) == math.sqrt(0.5)
    assert resolve_threshold(paper, quantile_of=math.sqrt, compat="korbak2023") == 5.6e-4


def test_a_quantile_that_nothing_gives_is_refused():
    with pytest.raises(ConfigError, match="write the threshold as a number"):
        resolve_threshold(Quantile(quantile=0.5), quantile_of=math.sqrt, compat="korbak2023")
    with pytest.raises(DataError, match=r"run jobs\.score_corpus again"):
        resolve_threshold(Quantile(quantile=0.5), quantile_of=lambda q: None, compat=None)
