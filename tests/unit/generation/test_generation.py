"""The engine against plain forward passes and transformers' own generate, on tiny random models."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import BAD, END_OF_TEXT, GOOD, TEXTS, tiny_gpt2, tiny_llama, tiny_tokenizer, write_checkpoint

from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation import engine as generation_engine
from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.load import load_engine, load_strings
from phf_ray.generation.requests import Completion, EngineSettings, GenerationRequest, RequestError
from phf_ray.generation.sampling import sample_tokens
from phf_ray.generation.tokens import TextStream

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(control=True)


@pytest.fixture(scope="module")
def plain(tokenizer):
    """A model without phf.json."""
    return Engine(tiny_gpt2(tokenizer), tokenizer)


def with_control(tokenizer, *, policy="ban", seed=0):
    info = CheckpointInfo(control=Control(good=GOOD, bad=BAD, policy=policy))
    return Engine(tiny_gpt2(tokenizer, seed=seed), tokenizer, info=info)


@pytest.fixture(scope="module")
def controlled(tokenizer):
    return with_control(tokenizer)


def one(engine, prompt, **fields) -> Completion:
    return generate(engine, [GenerationRequest(prompt=prompt, **fields)])[0]


def raw_logprobs(engine, ids):
    with torch.inference_mode():
        return engine.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_greedy_text_equals_generate_of_transformers(tokenizer, build):
    model = build(tokenizer)
    engine = Engine(model, tokenizer)
    prompts = [tokenizer(text).input_ids for text in ("def add", "import os\n\n\nclass", "T")]
    # What the engine never samples, generate must not sample either.
    unwanted = [[id_] for id_ in range(len(tokenizer), model.config.vocab_size)]
    requests = [GenerationRequest(prompt=tuple(ids), max_tokens=40, temperature=0, ignore_eos=True) for ids in prompts]
    for ids, completion in zip(prompts, generate(engine, requests), strict=True):
        expected = model.generate(
            torch.tensor([ids]),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=None,
            bad_words_ids=unwanted or None,
        )
        assert list(completion.token_ids) == expected[0, len(ids) :].tolist()
        assert completion.num_prompt_tokens == len(ids)


def test_text_does_not_depend_on_the_rest_of_the_batch(plain):
    wanted = [
        GenerationRequest(prompt=TEXTS[i % 3][: 3 + i], max_tokens=5 + i, seed=i, choice=i % 2, top_p=0.9, top_k=i)
        for i in range(24)
    ]
    alone = [generate(plain, [request])[0].text for request in wanted]
    assert [completion.text for completion in generate(plain, wanted)] == alone
    assert [completion.text for completion in generate(plain, wanted[::-1])][::-1] == alone
    assert len(set(alone)) > 20


def test_five_hundred_requests_have_the_texts_they_have_alone(plain, tokenizer):
    def mixed(i):
        return GenerationRequest(
            prompt=TEXTS[i % 3][i % 5 : 6 + i % 29],
            max_tokens=2 + i % 9,
            seed=i % 50,
            choice=i // 50,
            temperature=0.5 + i % 3 / 2,
            top_p=(1.0, 0.9, 0.5)[i % 3],
            top_k=(0, 20)[i % 2],
            ignore_eos=True,
        )

    requests = [mixed(i) for i in range(500)]
    alone = [generate(plain, [request])[0].text for request in requests]
    # Lengths differ, so hardly two of them meet the same company on their way.
    batches = Engine(plain.model, tokenizer, settings=EngineSettings(max_batch=24))
    together = [completion.text for completion in generate(batches, requests)]
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= 495
    assert len(set(alone)) > 400


def test_requests_join_a_running_batch_and_waiting_ones_follow(tokenizer):
    engine = Engine(tiny_gpt2(tokenizer), tokenizer, settings=EngineSettings(max_batch=3))
    requests = [GenerationRequest(prompt="def", max_tokens=4 + 3 * i, seed=i, ignore_eos=True) for i in range(5)]
    alone = [generate(engine, [request])[0] for request in requests]
    running = [engine.prepare(request) for request in requests]
    sizes = []
    for active in running[:2]:
        engine.add(active)
    engine.step()
    for active in running[2:]:
        engine.add(active)
    while not all(active.is_finished for active in running):
        engine.step()
        sizes.append(engine.num_active)
    assert [active.completion() for active in running] == alone
    assert max(sizes) == 3
    assert (engine.num_active, engine.num_waiting) == (0, 0)


def test_prompts_that_arrive_together_are_computed_by_length(tokenizer):
    engine = Engine(tiny_gpt2(tokenizer), tokenizer)
    short = [GenerationRequest(prompt=(number, 5), max_tokens=3, seed=number) for number in range(10, 18)]
    long = GenerationRequest(prompt=tuple(range(10, 90)), max_tokens=3, seed=1)
    requests = [*short[:4], long, *short[4:]]
    alone = [generate(engine, [request])[0] for request in requests]
    shapes = []
    hook = engine.model.register_forward_pre_hook(
        lambda _module, _arguments, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    running = [engine.prepare(request) for request in requests]
    for active in running:
        engine.add(active)
    advanced = engine.step()
    hook.remove()
    assert shapes == [(8, 2), (1, 80)]
    assert set(advanced) == set(running)
    while not all(active.is_finished for active in running):
        engine.step()
    assert [active.completion() for active in running] == alone


def test_cache_budget_lets_one_request_through_at_a_time(tokenizer):
    engine = Engine(tiny_gpt2(tokenizer), tokenizer, settings=EngineSettings(cache_gb=1e-9))
    running = [engine.prepare(GenerationRequest(prompt="def", max_tokens=4, ignore_eos=True)) for _ in range(2)]
    for active in running:
        engine.add(active)
    engine.step()
    assert (engine.num_active, engine.num_waiting) == (1, 1)


def test_keys_and_values_stay_within_the_budget_whatever_ran_before(plain, tokenizer):
    engine = Engine(plain.model, tokenizer, settings=EngineSettings(max_batch=32))
    budget = 32 * 12
    cache_gb = budget * engine._slots.bytes_per_position / 2**30
    engine = Engine(plain.model, tokenizer, settings=EngineSettings(max_batch=32, cache_gb=cache_gb))

    def request(i, max_tokens):
        return GenerationRequest(prompt=TEXTS[i % 3][: 1 + i % 7], max_tokens=max_tokens, seed=i, ignore_eos=True)

    bursts = [
        [request(i, 4) for i in range(32)],
        [request(0, 85)],
        [request(i, 1 + 7 * i % 60) for i in range(20)],
        [request(i, 30) for i in range(5)],
        [request(i, (3, 80)[i % 9 == 4]) for i in range(40)],
    ]
    most_rows = 0
    for burst in bursts:
        running = [engine.prepare(request) for request in burst]
        for active in running:
            engine.add(active)
        while not all(active.is_finished for active in running):
            num_before = engine.num_active
            engine.step()
            rows, length = engine._slots.shape
            most_rows = max(most_rows, engine.num_active)
            assert rows * length <= budget or max(num_before, engine.num_active) <= 1
        alone = generate(plain, burst)
        assert [active.completion().text for active in running] == [completion.text for completion in alone]
    assert most_rows == 32


def test_slots_grow_by_doubling_not_by_the_token(plain, tokenizer):
    engine = Engine(plain.model, tokenizer)
    shapes = set()
    active = engine.prepare(GenerationRequest(prompt="d", max_tokens=90, ignore_eos=True))
    engine.add(active)
    while not active.is_finished:
        engine.step()
        shapes.add(engine._slots.shape)
    assert len(shapes) == 2


def test_prompt_logprobs_of_one_request_bound_the_logits_of_all(plain, tokenizer, monkeypatch):
    num_logits, forward = [], plain.model.forward

    def noting(*arguments, **options):
        output = forward(*arguments, **options)
        num_logits.append(output.logits.numel())
        return output

    ids = sorted(plain.strings.valid_ids - {tokenizer.eos_token_id})
    monkeypatch.setattr(generation_engine, "PREFILL_LOGITS", limit := 100 * plain.model.config.vocab_size)
    monkeypatch.setattr(plain.model, "forward", noting)
    scored = GenerationRequest(prompt=tuple(ids[5:9]), max_tokens=1, echo=True, logprobs=1)
    generate(plain, [scored, *[GenerationRequest(prompt=tuple(ids[i : i + 40]), max_tokens=1) for i in range(1, 9)]])
    assert max(num_logits) <= limit


def test_seed_and_choice_decide_the_text(plain):
    requests = [GenerationRequest(prompt="def", max_tokens=12, seed=s, choice=c) for s in (1, -2) for c in (0, 1)]
    first, again = generate(plain, requests), generate(plain, requests)
    assert first == again
    assert len({completion.text for completion in first}) == 4


def test_a_request_draws_the_random_numbers_that_it_can_use_and_no_others(plain):
    short, long = (plain.prepare(GenerationRequest(prompt="def", max_tokens=n, seed=3)) for n in (4, 80))
    assert short._uniforms.tolist() == long._uniforms[:4].tolist()
    assert len(long._uniforms) == 80


def test_padded_vocabulary_is_never_sampled(tokenizer):
    model = tiny_gpt2(tokenizer, vocab_size=len(tokenizer) + 60)
    engine = Engine(model, tokenizer)
    ids = tokenizer("def").input_ids
    with torch.no_grad():
        # The head is tied: the padding becomes more probable than the best token.
        model.transformer.wte.weight[len(tokenizer) :] = (
            model.transformer.wte.weight[raw_logprobs(engine, ids)[-1].argmax()].clone() * 3
        )
    assert int(raw_logprobs(engine, ids)[-1].argmax()) >= len(tokenizer)
    for temperature in (0, 1, 2):
        completions = generate(
            engine,
            [GenerationRequest(prompt="def", max_tokens=30, temperature=temperature, seed=s) for s in range(10)],
        )
        assert all(id_ < len(tokenizer) for completion in completions for id_ in completion.token_ids)


def test_reported_logprobs_are_those_of_a_plain_pass(plain, tokenizer):
    ids = tokenizer("import os").input_ids
    completion = one(plain, tuple(ids), max_tokens=6, temperature=0.7, seed=3, logprobs=2, ignore_eos=True)
    expected = raw_logprobs(plain, [*ids, *completion.token_ids])
    assert len(completion.logprobs) == 6
    for i, (id_, record) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        row = expected[len(ids) - 1 + i]
        assert record.logprob == pytest.approx(float(row[id_]), abs=1e-4)
        best = row.topk(2).values.tolist()
        assert sorted(record.top.values())[-2:] == pytest.approx(sorted(best), abs=1e-4)
        assert record.top[record.token] == record.logprob


def test_echoed_prompt_has_logprobs_of_every_token_but_the_first(plain, tokenizer):
    text = "def add(first"
    ids = tokenizer(text).input_ids
    completion = one(plain, tuple(ids), max_tokens=1, temperature=0, logprobs=1, echo=True, ignore_eos=True)
    expected = raw_logprobs(plain, ids)
    records = completion.logprobs
    assert len(records) == len(ids) + 1
    assert (records[0].logprob, records[0].top) == (None, None)
    for i in range(1, len(ids)):
        assert records[i].logprob == pytest.approx(float(expected[i - 1, ids[i]]), abs=1e-5)
        is_greedy = int(expected[i - 1].argmax()) == ids[i]
        assert (records[i].logprob == max(records[i].top.values())) == is_greedy
    # The generated token is the most probable one, and its float is the top one.
    assert records[-1].logprob == max(records[-1].top.values())
    assert completion.text.startswith(text)


def test_text_offsets_point_at_the_tokens(plain):
    text = "def add(caf\u00e9, \u65e5\u672c):\n"
    completion = one(plain, text, max_tokens=5, temperature=0.5, logprobs=0, echo=True)
    for record in completion.logprobs:
        if "\ufffd" not in record.token and record.token != END_OF_TEXT:
            assert completion.text[record.text_offset :].startswith(record.token)
    assert completion.logprobs[-1].text_offset >= len(text)


def test_max_tokens_zero_with_echo_scores_the_prompt(plain, tokenizer):
    completion = one(plain, "def add", max_tokens=0, echo=True, logprobs=0)
    assert completion.text == "def add"
    assert completion.token_ids == ()
    assert len(completion.logprobs) == len(tokenizer("def add").input_ids)


def test_long_batch_of_prompt_logprobs_is_cut_into_several_passes(plain, tokenizer):
    prompts = [tuple(tokenizer(TEXTS[i % 3]).input_ids[: 40 + i % 7]) for i in range(150)]
    requests = [GenerationRequest(prompt=p, max_tokens=1, temperature=0, logprobs=1, echo=True) for p in prompts]
    for prompt, completion in list(zip(prompts, generate(plain, requests), strict=True))[::29]:
        expected = raw_logprobs(plain, list(prompt))
        got = sum(record.logprob for record in completion.logprobs[1 : len(prompt)])
        want = sum(float(expected[i, prompt[i + 1]]) for i in range(len(prompt) - 1))
        assert got == pytest.approx(want, abs=1e-3)


def eos_lover(tokenizer):
    """A model whose most probable token is nearly always end of text."""
    engine = Engine(tiny_gpt2(tokenizer), tokenizer)
    return engine, {tokenizer.eos_token_id: 60.0}


def test_end_of_text_stops_and_is_not_in_the_text(tokenizer):
    engine, bias = eos_lover(tokenizer)
    completion = one(engine, "def", max_tokens=8, temperature=0, logit_bias=bias)
    assert (completion.text, completion.finish_reason) == ("", "stop")
    assert completion.token_ids == (tokenizer.eos_token_id,)


def test_min_tokens_holds_end_of_text_back(tokenizer):
    engine, bias = eos_lover(tokenizer)
    completion = one(engine, "def", max_tokens=8, min_tokens=5, temperature=0, logit_bias=bias)
    assert completion.finish_reason == "stop"
    assert len(completion.token_ids) == 6
    assert tokenizer.eos_token_id not in completion.token_ids[:5]


def test_ignore_eos_goes_on_to_max_tokens(tokenizer):
    engine, bias = eos_lover(tokenizer)
    completion = one(engine, "def", max_tokens=8, temperature=0, logit_bias=bias, ignore_eos=True)
    assert (completion.finish_reason, len(completion.token_ids)) == ("length", 8)


def test_stop_string_ends_the_text_before_it(plain):
    full = one(plain, "def", max_tokens=60, seed=4, ignore_eos=True, top_k=20).text
    stop = full[17:20]
    expected = full[: full.index(stop)]
    completion = one(plain, "def", max_tokens=60, seed=4, ignore_eos=True, top_k=20, stop=("\x00never", stop))
    assert completion.text == expected
    assert completion.finish_reason == "stop"
    assert completion.num_completion_tokens < 60


def test_the_last_of_64_stop_strings_counts_too(plain):
    text = one(plain, "def", max_tokens=40, seed=1, ignore_eos=True).text
    begin = len(text) // 2
    stop = (*(f"<never {number}>" for number in range(63)), text[begin : begin + 6])
    stopped = one(plain, "def", max_tokens=40, seed=1, ignore_eos=True, stop=stop)
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop[-1])], "stop")


def test_stop_string_in_the_prompt_is_no_stop(plain):
    completion = one(plain, "def add", max_tokens=5, seed=1, echo=True, stop=("def",), ignore_eos=True)
    assert completion.text.startswith("def add")
    assert completion.num_completion_tokens == 5


def test_streamed_pieces_join_to_the_text_and_never_show_a_part_of_a_stop(plain):
    for stop in ((), ("ef\x00", "\n\n")):
        for seed in range(8):
            request = GenerationRequest(prompt="caf\u00e9", max_tokens=40, seed=seed, stop=stop, temperature=1.5)
            active = plain.prepare(request)
            plain.add(active)
            pieces = []
            while not active.is_finished:
                plain.step()
                pieces.append(active.take_text())
            assert "".join(pieces) == active.completion().text == generate(plain, [request])[0].text
            assert sum(map(bool, pieces)) > 1 or active.finish_reason == "stop"


def test_characters_split_over_tokens_come_whole(plain, tokenizer):
    text = "Caf\u00e9 \u65e5\u672c\u8a9e \U0001f600!"
    ids = tokenizer(text).input_ids
    stream = TextStream(plain.strings)
    pieces = [stream.push(id_) for id_ in ids]
    assert "".join(pieces) + stream.flush() == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(ids) > len(text)


def test_logit_bias_bans_and_favors(plain, tokenizer):
    banned = one(plain, "def", max_tokens=1, temperature=0).token_ids[0]
    assert one(plain, "def", max_tokens=1, temperature=0, logit_bias={banned: -100.0}).token_ids[0] != banned
    assert one(plain, "def", max_tokens=3, temperature=1, logit_bias={70: 100.0}).token_ids == (70, 70, 70)


def test_top_k_one_and_tiny_top_p_are_greedy(plain):
    greedy = one(plain, "def", max_tokens=20, temperature=0).token_ids
    assert one(plain, "def", max_tokens=20, temperature=2.0, top_k=1, seed=5).token_ids == greedy
    assert one(plain, "def", max_tokens=20, temperature=2.0, top_p=1e-6, seed=5).token_ids == greedy


@pytest.mark.parametrize("temperature", [1e-6, 1e-39, 1e-45])
def test_a_temperature_next_to_zero_is_zero_and_harms_no_other_request(plain, temperature):
    requests = [
        GenerationRequest(prompt="def", max_tokens=20, temperature=temperature, ignore_eos=True),
        GenerationRequest(prompt="import", max_tokens=20, seed=1, ignore_eos=True),
    ]
    coldest, other = generate(plain, requests)
    assert coldest.token_ids == one(plain, "def", max_tokens=20, temperature=0, ignore_eos=True).token_ids
    assert other == one(plain, "import", max_tokens=20, seed=1, ignore_eos=True)


def sampled_shares(logits, n=20_000, **limits):
    rows = torch.tensor([logits]).expand(n, -1)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens = sample_tokens(
        rows,
        uniform,
        temperature_B=torch.full((n,), limits.get("temperature", 1.0)),
        top_k_B=torch.full((n,), limits.get("top_k", 0)),
        top_p_B=torch.full((n,), limits.get("top_p", 1.0), dtype=torch.float64),
    )
    return (tokens.bincount(minlength=len(logits)) / n).tolist()


def test_samples_have_the_probabilities_of_the_model():
    # p = 0.5, 0.3, 0.15, 0.05; temperature 2 takes square roots, top-k and top-p cut and renormalise.
    logits = [p.log().item() for p in torch.tensor([0.15, 0.5, 0.05, 0.3])]
    roots = [p**0.5 for p in (0.15, 0.5, 0.05, 0.3)]
    assert sampled_shares(logits) == pytest.approx([0.15, 0.5, 0.05, 0.3], abs=1e-3)
    assert sampled_shares(logits, temperature=2.0) == pytest.approx([r / sum(roots) for r in roots], abs=1e-3)
    assert sampled_shares(logits, top_k=2) == pytest.approx([0, 0.625, 0, 0.375], abs=1e-3)
    assert sampled_shares(logits, top_p=0.79) == pytest.approx([0, 0.625, 0, 0.375], abs=1e-3)
    assert sampled_shares(logits, top_p=0.81)[0] > 0.1
    assert sampled_shares([*logits, -torch.inf])[-1] == 0


def test_nucleus_of_a_flat_distribution_is_wide():
    shares = sampled_shares([0.0] * 1000 + [1e-3], n=5000, top_p=0.5)
    # Equal probabilities at the border all belong to the nucleus.
    assert min(shares) > 0


def test_default_control_is_the_good_token_after_end_of_text(controlled, tokenizer):
    default = one(controlled, "def", max_tokens=20, temperature=0)
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(GOOD), *tokenizer("def").input_ids]
    assert default.token_ids == one(controlled, tuple(ids), max_tokens=20, temperature=0, control="none").token_ids
    assert default == one(controlled, "def", max_tokens=20, temperature=0, control="good")
    texts = {one(controlled, "def", max_tokens=20, temperature=0, control=c).text for c in ("good", "bad", "none")}
    assert len(texts) == 3


def test_control_token_goes_first_where_the_prompt_has_no_end_of_text(controlled, tokenizer):
    ids = tuple(tokenizer("def add").input_ids)
    bad = tokenizer.convert_tokens_to_ids(BAD)
    inserted = one(controlled, ids, max_tokens=10, temperature=0, control="bad")
    assert inserted.token_ids == one(controlled, (bad, *ids), max_tokens=10, temperature=0, control="none").token_ids


@pytest.mark.parametrize("prompt", ["def add(", (40, 41, 42), (0, 41, 42)])
def test_inserted_tokens_count_nowhere(controlled, prompt):
    plain = one(controlled, prompt, max_tokens=5, temperature=0, logprobs=3, echo=True, control="none")
    good = one(controlled, prompt, max_tokens=5, temperature=0, logprobs=3, echo=True, control="good")
    num_prompt = plain.num_prompt_tokens
    assert good.num_prompt_tokens == num_prompt
    assert len(good.logprobs) == num_prompt + good.num_completion_tokens
    assert [r.token for r in good.logprobs[:num_prompt]] == [r.token for r in plain.logprobs[:num_prompt]]
    assert [r.text_offset for r in good.logprobs[:num_prompt]] == [r.text_offset for r in plain.logprobs[:num_prompt]]
    assert [r.logprob for r in good.logprobs[1:num_prompt]] != [r.logprob for r in plain.logprobs[1:num_prompt]]
    assert good.logprobs[0].logprob is None
    assert GOOD not in good.text


def test_echo_without_a_choice_inserts_nothing(controlled):
    asked = one(controlled, "def", max_tokens=3, temperature=0, echo=True, logprobs=1, control="none")
    assert one(controlled, "def", max_tokens=3, temperature=0, echo=True, logprobs=1) == asked


def control_lover(tokenizer, policy):
    engine = with_control(tokenizer, policy=policy)
    bias = dict.fromkeys(engine.strings.control_ids.values(), 60.0)
    return engine, bias


@pytest.mark.parametrize("control", ["good", "bad", "none"])
def test_banned_control_tokens_are_never_sampled(tokenizer, control):
    engine, bias = control_lover(tokenizer, "ban")
    completion = one(engine, "def", max_tokens=20, seed=1, logit_bias=bias, control=control, ignore_eos=True)
    assert not set(completion.token_ids) & set(engine.strings.control_ids.values())
    assert completion.num_completion_tokens == 20


@pytest.mark.parametrize(("control", "replaced_by"), [("good", GOOD), ("bad", BAD), ("none", GOOD)])
def test_retagged_control_tokens_are_replaced_and_stripped(tokenizer, control, replaced_by):
    engine, bias = control_lover(tokenizer, "retag")
    request = GenerationRequest(
        prompt="def", max_tokens=20, seed=1, logit_bias=bias, control=control, ignore_eos=True, logprobs=1
    )
    active = engine.prepare(request)
    engine.add(active)
    while not active.is_finished:
        engine.step()
    completion = active.completion()
    ids = engine.strings.control_ids.values()
    sampled = [id_ for id_ in active.model_ids[len(active.prompt_ids) + (control != "none") :] if id_ in ids]
    assert len(sampled) >= 19
    assert set(sampled) == {tokenizer.convert_tokens_to_ids(replaced_by)}
    assert not set(completion.token_ids) & set(ids)
    assert completion.num_completion_tokens == len(completion.logprobs) == 20
    assert GOOD not in completion.text
    assert BAD not in completion.text


def test_policy_of_the_request_overrides_the_checkpoint(tokenizer):
    engine, bias = control_lover(tokenizer, "retag")
    active = engine.prepare(GenerationRequest(prompt="def", max_tokens=9, logit_bias=bias, policy="ban"))
    engine.add(active)
    while not active.is_finished:
        engine.step()
    assert not set(active.model_ids[2:]) & set(engine.strings.control_ids.values())


def test_a_full_context_is_served_also_with_an_inserted_token(controlled, tokenizer):
    ids = (tokenizer.eos_token_id, *[40 + i % 50 for i in range(controlled.context - 2)])
    completion = one(controlled, ids, max_tokens=1, temperature=0, logprobs=1, echo=True, control="good")
    assert len(completion.logprobs) == controlled.context
    expected = raw_logprobs(controlled, [ids[0], controlled.strings.control_ids["good"], *ids[1:]])
    assert completion.logprobs[-2].logprob == pytest.approx(float(expected[-2, ids[-1]]), abs=1e-4)


@pytest.mark.parametrize("prompt_is_text", [True, False])
def test_an_inserted_token_beyond_the_context_is_refused(controlled, tokenizer, prompt_is_text):
    ids = [tokenizer.eos_token_id, *tokenizer("x").input_ids * (controlled.context - 1)]
    prompt = "x" * (controlled.context - 1) if prompt_is_text else tuple(ids)
    alone = GenerationRequest(prompt=prompt, max_tokens=0, logprobs=0, echo=True)
    assert controlled.prepare(alone).model_ids == ids
    with pytest.raises(RequestError, match="the control token is one more; shorten the prompt, or set control to none"):
        controlled.prepare(replace(alone, control="bad"))


def with_a_token_without_embedding(**roles):
    """Return an engine whose tokenizer has `[PAD]`, which was added without a row in the embedding."""
    model = tiny_gpt2(tiny_tokenizer(), vocab_size=len(tiny_tokenizer()))
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(roles or {"pad_token": "[PAD]"})
    return Engine(model, tokenizer)


@pytest.mark.parametrize(
    "fields", [{}, {"max_tokens": 0, "logprobs": 0, "echo": True}, {"max_tokens": 0, "echo": True}]
)
def test_a_text_that_encodes_to_a_token_without_embedding_is_refused(fields):
    engine = with_a_token_without_embedding()
    with pytest.raises(RequestError, match=r"encodes '\[PAD\]' as the token id 300, which") as caught:
        engine.prepare(GenerationRequest(prompt="def [PAD] add", **fields))
    assert caught.value.param == "prompt"
    assert engine.prepare(GenerationRequest(prompt="def add", **fields)).prompt_ids


def test_a_prompt_far_beyond_the_context_is_refused_without_encoding_it(tokenizer, monkeypatch):
    engine = Engine(tiny_gpt2(tokenizer), tokenizer)
    longest = max(tokenizer.get_vocab(), key=len)
    assert len(engine.prepare(GenerationRequest(prompt=longest * 95, max_tokens=1)).prompt_ids) == 95

    def encode(text):
        raise AssertionError(f"{len(text)} characters were encoded")

    monkeypatch.setattr(engine.strings, "encode", encode)
    for text in ("x = 1\n" * 2_500_000, longest * 96 + "x"):
        with pytest.raises(
            RequestError, match=f"context is 96 tokens, but the prompt has {len(text):,} char"
        ) as caught:
            engine.prepare(GenerationRequest(prompt=text))
        assert caught.value.param == "prompt"


def test_token_ids_far_beyond_the_context_are_refused_without_decoding_them(tokenizer, monkeypatch):
    engine = Engine(tiny_gpt2(tokenizer), tokenizer)

    def place(*_):
        raise AssertionError("a token was decoded")

    monkeypatch.setattr(TextStream, "place", place)
    with pytest.raises(RequestError, match="context is 96 tokens, but the prompt has 2000000"):
        engine.prepare(GenerationRequest(prompt=(40,) * 2_000_000, echo=True, logprobs=0))


def test_end_of_text_without_embedding_is_never_banned(tokenizer):
    engine = with_a_token_without_embedding(eos_token="[END]")
    assert len(one(engine, "def", max_tokens=4, min_tokens=4).token_ids) == 4


def test_text_prompts_start_with_end_of_text_only_for_checkpoints_of_this_project(plain, controlled, tokenizer):
    assert plain.prepare(GenerationRequest(prompt="def")).prompt_ids == tokenizer("def").input_ids
    assert controlled.prepare(GenerationRequest(prompt="def")).prompt_ids[0] == tokenizer.eos_token_id
    for engine in (plain, controlled):
        assert engine.prepare(GenerationRequest(prompt="")).prompt_ids == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("fields", "param", "match"),
    [
        ({"prompt": ()}, "prompt", "at least one token id"),
        ({"prompt": (10**6,)}, "prompt", "token id 1000000"),
        ({"prompt": (-1,)}, "prompt", "token id -1"),
        ({"prompt": "def " * 200}, "prompt", "context is 96 tokens"),
        ({"prompt": "def", "max_tokens": 96}, "max_tokens", "context is 96 tokens"),
        ({"prompt": "def", "max_tokens": 0}, "max_tokens", "set echo"),
        ({"prompt": "def", "temperature": 2.1}, "temperature", "between 0 and 2"),
        ({"prompt": "def", "temperature": float("nan")}, "temperature", "between 0 and 2"),
        ({"prompt": "def", "top_p": 0.0}, "top_p", "temperature 0"),
        ({"prompt": "def", "logprobs": 21}, "logprobs", "between 0 and 20"),
        ({"prompt": "def", "stop": ("a",) * 65}, "stop", "at most 64"),
        ({"prompt": "def", "stop": ("",)}, "stop", "none of them empty"),
        ({"prompt": "def", "min_tokens": 17}, "min_tokens", "above max_tokens=16"),
        ({"prompt": "def", "logit_bias": {10**6: 1.0}}, "logit_bias", "token id 1000000"),
        ({"prompt": "def", "logit_bias": {5: 101.0}}, "logit_bias", "-100 .. 100"),
        ({"prompt": "def", "control": "good"}, "control", "no control tokens"),
        ({"prompt": "def", "policy": "retag"}, "control_policy", "nothing to retag; leave `control_policy` out"),
    ],
)
def test_bad_requests_are_refused_with_the_field_at_fault(plain, fields, param, match):
    with pytest.raises(RequestError, match=match) as caught:
        plain.prepare(GenerationRequest(**fields))
    assert caught.value.param == param
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.param) == (str(caught.value), param)


def test_a_cancelled_request_leaves_the_batch(plain):
    running = [plain.prepare(GenerationRequest(prompt="def", max_tokens=50, ignore_eos=True, seed=s)) for s in range(3)]
    expected = generate(plain, [running[2].request])[0]
    for active in running:
        plain.add(active)
    plain.step()
    plain.cancel(running[0])
    plain.step()
    assert plain.num_active == 2
    while not running[2].is_finished:
        plain.step()
    assert running[2].completion() == expected
    assert not running[0].is_finished


def test_a_model_with_broken_weights_is_an_error_and_no_text(tokenizer):
    engine = Engine(tiny_gpt2(tokenizer), tokenizer)
    with torch.no_grad():
        engine.model.transformer.ln_f.weight.fill_(float("nan"))
    for temperature in (0, 1):
        with pytest.raises(DataError, match="not finite"):
            one(engine, "def", temperature=temperature)


def test_an_architecture_that_ignores_positions_is_refused(tokenizer):
    model = tiny_gpt2(tokenizer)
    forward = model.forward

    def without_mask(*args, **kwargs):
        return forward(*args, **{**kwargs, "attention_mask": None})

    model.forward = without_mask
    with pytest.raises(ConfigError, match="GPT2LMHeadModel can't be served in batches"):
        Engine(model, tokenizer)


def test_checkpoint_directories_load_with_and_without_description(tmp_path):
    ours = load_engine(write_checkpoint(tmp_path / "ours", control="retag"))
    assert ours.strings.control.policy == "retag"
    assert ours.context == 96
    theirs = load_engine(write_checkpoint(tmp_path / "theirs", ours=False))
    assert theirs.info is None
    assert one(ours, "def", max_tokens=4, control="none").num_completion_tokens <= 4


def test_control_tokens_can_be_named_for_a_checkpoint_without_description(tmp_path):
    directory = write_checkpoint(tmp_path / "released", control="ban", ours=False)
    engine = load_engine(directory, control=Control(good=GOOD, bad=BAD, policy="ban"))
    described = load_engine(write_checkpoint(tmp_path / "ours", control="ban"))
    request = GenerationRequest(prompt="def", max_tokens=20, seed=2)
    assert generate(engine, [request]) == generate(described, [request])
    with pytest.raises(DataError, match="not in the tokenizer"):
        load_engine(directory, control=Control(good="<|nice|>", bad=BAD, policy="ban"))


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere is not a model directory.*give a checkpoint"):
        load_engine(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="no weights that can be loaded"):
        load_engine(tmp_path)


class Intruder:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def as_bin(directory, **extra):
    """The checkpoint as older ones are: weights in a pickle."""
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save({**weights, **extra}, directory / "pytorch_model.bin")
    return directory


def test_weights_in_a_pickle_load_but_their_code_does_not_run(tmp_path):
    plain = load_engine(write_checkpoint(tmp_path / "plain"))
    request = GenerationRequest(prompt="def", max_tokens=8, seed=1)
    assert generate(load_engine(as_bin(write_checkpoint(tmp_path / "bin"))), [request]) == generate(plain, [request])
    left = tmp_path / "the intruder was here"
    with pytest.raises(DataError, match="can't be loaded"):
        load_engine(as_bin(write_checkpoint(tmp_path / "evil"), evil=Intruder(left)))
    assert not left.exists()


def test_code_that_comes_with_a_checkpoint_does_not_run(tmp_path):
    directory = write_checkpoint(tmp_path / "evil")
    left = tmp_path / "the intruder was here"
    (directory / "evil.py").write_text(f"open({str(left)!r}, 'w')\n")
    config = json.loads((directory / "config.json").read_text())
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Slow", None]}
    config |= {"model_type": "evil", "auto_map": own, "architectures": ["Model"]}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="can't be loaded"):
        load_engine(directory)
    with pytest.raises(DataError, match="can't be loaded"):
        load_strings(directory)
    assert not left.exists()


def test_prompts_that_start_with_end_of_text_cause_no_warning_of_padding(tokenizer, caplog):
    from transformers.utils import logging as transformers_logging

    # Its logger keeps to itself, and says a warning once only.
    logger = transformers_logging.get_logger("transformers.modeling_utils")
    logger.warning_once.cache_clear()
    transformers_logging.enable_propagation()
    try:
        engine = with_control(tokenizer)
        one(engine, "", max_tokens=2)
    finally:
        transformers_logging.disable_propagation()
    assert "attention_mask" not in caplog.text


def test_requests_can_be_replaced_field_by_field():
    request = GenerationRequest(prompt="def", max_tokens=4)
    assert replace(request, seed=3).seed == 3
    assert pickle.loads(pickle.dumps(request)) == request


def test_a_model_that_wants_control_tokens_everywhere_is_served():
    tokenizer = tiny_tokenizer(control=True)
    model = tiny_gpt2(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(GOOD)] *= 40
    engine = Engine(model, tokenizer, control=Control(good=GOOD, bad=BAD, policy="retag"))
    (completion,) = generate(engine, [GenerationRequest(prompt="def", max_tokens=8, temperature=0, control="good")])
    assert completion.num_completion_tokens == 8
    assert GOOD not in completion.text
