"""The engine against its oracles: transformers, itself one by one, itself without a cache."""

import asyncio
import threading

import pytest
import torch

from tunekeeper.datasets.tokenizer import Tokenizer
from tunekeeper.errors import InvalidRequest, Overloaded, TunekeeperError, Unavailable
from tunekeeper.inference import constrain
from tunekeeper.inference.engine import Engine, chunk_size
from tunekeeper.inference.packed import PackedWeight, pack
from tunekeeper.inference.params import Sampling
from tunekeeper.inference.schedule import WORTH_SHARING
from tunekeeper.models.load import load_decoder
from tunekeeper.models.lora import LoraAdapter, LoraPair, new_adapter

TEXTS = (
    "hello there the city",
    "tell me about paris and tokyo. what is the weather in the city? " * 3,
    "x",
    "hello there the city of names is true",
    "question: what is the name of the assistant",
)
GREEDY = Sampling(temperature=0, max_tokens=20)
SEEDED = Sampling(temperature=1.2, top_p=0.95, seed=11, max_tokens=20)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return Tokenizer.load(tiny_base)


@pytest.fixture(scope="module")
def decoder(tiny_base):
    return load_decoder(tiny_base, dtype="fp32")


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n") for text in TEXTS]


@pytest.fixture
def make_engine(decoder, tokenizer, tiny_base):
    engines = []

    def make(**options):
        options = {"cache_tokens": 4096, "max_batch": 8} | options
        engines.append(Engine(decoder, tokenizer, tiny_base, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def adapter_of(decoder, seed: int, **options) -> LoraAdapter:
    """An adapter that changes what is said."""
    adapter = new_adapter(decoder.linear_modules(), rank=4, alpha=8, seed=seed, **options)
    source = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(pair.a_RI.detach(), torch.randn(pair.b_OR.shape, generator=source) * 0.2)
        for name, pair in adapter.pairs.items()
    }
    return LoraAdapter(pairs, adapter.rank, adapter.alpha, adapter.scope, adapter.invocation_tokens)


def texts(answers) -> list[str]:
    return [answer.text for answer in answers]


def test_greedy_answers_are_those_of_transformers(make_engine, tiny_base, tokenizer, prompts):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    answers = make_engine().answers(prompts, GREEDY)
    for prompt, answer in zip(prompts, answers, strict=True):
        options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 2}
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        wanted = theirs.generate(torch.tensor([prompt]), attention_mask=mask, **options)[0][len(prompt) :].tolist()
        wanted = [token for token in wanted if token not in tokenizer.eos_ids]
        assert answer.n_generated == len(wanted)
        assert answer.text == b"".join(map(tokenizer.token_bytes, wanted)).decode("utf-8", "replace")


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_many_at_once_answer_as_one_by_one(make_engine, prompts, sampling):
    alone = [make_engine(max_batch=1).answer(prompt, sampling) for prompt in prompts]
    together = make_engine().answers(prompts, sampling)
    assert texts(together) == texts(alone)


def test_an_engine_without_a_thread_answers_the_same_in_the_caller_s(make_engine, prompts):
    engine = make_engine(in_background=False)
    threads = set()
    engine.submit(prompts[0], SEEDED, deliver=lambda _: threads.add(threading.current_thread()))
    assert not threads
    engine.drain()
    assert threads == {threading.current_thread()}
    assert texts(engine.answers(prompts, SEEDED)) == texts(make_engine().answers(prompts, SEEDED))


def test_an_engine_without_a_thread_ends_what_was_asked_when_it_closes(make_engine, prompts):
    engine = make_engine(in_background=False)
    found = []
    engine.submit(prompts[0], GREEDY, deliver=found.append)
    engine.close()
    assert isinstance(found[-1], Unavailable)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_cached_beginning_changes_nothing(make_engine, prompts, sampling):
    engine = make_engine()
    first = engine.answer(prompts[1], sampling)
    again = engine.answer(prompts[1], sampling)
    longer = engine.answer([*prompts[1], 7, 8, 9], sampling)
    assert first.n_cached == 0
    assert again.n_cached == len(prompts[1]) - 1
    assert longer.n_cached >= len(prompts[1])
    assert again.text == first.text
    assert longer.text == make_engine().answer([*prompts[1], 7, 8, 9], sampling).text


def test_a_next_turn_computes_only_what_is_new(make_engine, tokenizer, prompts):
    engine = make_engine()
    first = engine.answer(prompts[0], Sampling(temperature=0, max_tokens=10))
    turn = [*prompts[0], *tokenizer.encode(first.text), *tokenizer.encode("<|im_end|>\nhello")]
    assert engine.answer(turn, GREEDY).n_cached >= len(prompts[0])


def test_a_prompt_in_chunks_answers_as_in_one(make_engine, tokenizer):
    prompt = tokenizer.encode("paris tokyo weather " * 40)
    assert len(prompt) > 128
    whole, chunked = make_engine(), make_engine()
    whole._seconds_per_row, chunked._seconds_per_row = 1e-9, 1e9
    assert chunked.answer(prompt, GREEDY).text == whole.answer(prompt, GREEDY).text


def test_answers_that_outgrow_the_cache_are_computed_again_and_stay_the_same(make_engine, prompts):
    sampling = Sampling(temperature=0.8, seed=3, max_tokens=120)
    alone = [make_engine(max_batch=1).answer(prompt, sampling) for prompt in prompts[:4]]
    crowded = make_engine(cache_tokens=512).answers(prompts[:4], sampling)
    assert texts(crowded) == texts(alone)


@pytest.mark.parametrize("scope", ["all", "completion"])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_several_adapters_at_once_answer_as_one_by_one(make_engine, decoder, tokenizer, prompts, scope, sampling):
    begin = tuple(tokenizer.encode("<|im_start|>assistant\n"))
    adapters = [None, *(adapter_of(decoder, n, scope=scope, invocation_tokens=begin) for n in (1, 2)), None]
    batch = [(prompt, adapter) for prompt in prompts[:3] for adapter in adapters]
    alone = [make_engine(max_batch=1).answer(prompt, sampling, adapter=adapter) for prompt, adapter in batch]
    together = make_engine(max_batch=16).answers(
        [prompt for prompt, _ in batch], sampling, adapters=[adapter for _, adapter in batch]
    )
    assert texts(together) == texts(alone)
    assert len(set(texts(alone)[:3])) == 3  # the adapters do change the answers


def test_an_adapter_of_completions_shares_the_prompt_with_its_base(make_engine, decoder, tokenizer, prompts):
    begin = tuple(tokenizer.encode("<|im_start|>assistant\n"))
    adapter = adapter_of(decoder, 1, scope="completion", invocation_tokens=begin)
    engine = make_engine()
    engine.answer(prompts[1], GREEDY)
    shared = engine.answer(prompts[1], GREEDY, adapter=adapter)
    assert shared.n_cached == len(prompts[1]) - len(begin)
    assert shared.text == make_engine().answer(prompts[1], GREEDY, adapter=adapter).text
    whole = adapter_of(decoder, 1)
    assert engine.answer(prompts[1], GREEDY, adapter=whole).n_cached == 0


def test_an_adapter_acts_in_the_engine_as_merged_into_the_weights(
    make_engine, decoder, tokenizer, prompts, tiny_base, tmp_path
):
    import shutil

    from safetensors.torch import load_file, save_file

    from naive import merged

    adapter = adapter_of(decoder, 5)
    directory = tmp_path / "merged"
    shutil.copytree(tiny_base, directory)
    save_file(merged(load_file(tiny_base / "model.safetensors"), adapter), directory / "model.safetensors")
    with Engine(load_decoder(directory, dtype="fp32"), tokenizer, directory, cache_tokens=1024, max_batch=2) as other:
        wanted = other.answer(prompts[1], GREEDY)
    assert make_engine().answer(prompts[1], GREEDY, adapter=adapter).text == wanted.text


def test_packed_weights_answer_as_plain_ones(tiny_base, tokenizer, decoder, make_engine, prompts):
    packed = load_decoder(tiny_base, dtype="fp32")
    pack(packed)
    assert isinstance(packed.layers[0].qkv_OE, PackedWeight)
    adapter = adapter_of(decoder, 4)
    with Engine(packed, tokenizer, tiny_base, cache_tokens=4096, max_batch=8) as engine:
        for chosen in (None, adapter):
            plain = make_engine().answers(prompts, GREEDY, adapters=[chosen] * len(prompts))
            assert texts(engine.answers(prompts, GREEDY, adapters=[chosen] * len(prompts))) == texts(plain)


def test_an_answer_ends_at_a_stop_string_and_leaves_it_out(make_engine, prompts):
    free = make_engine().answer(prompts[2], SEEDED)
    stop = free.text[4:6]
    answer = make_engine().answer(
        prompts[2], Sampling(temperature=1.2, top_p=0.95, seed=11, max_tokens=20, stop=(stop,))
    )
    assert answer.text == free.text[: free.text.index(stop)]
    assert answer.finish_reason == "stop"


def test_an_end_token_ends_the_answer_and_is_no_text(make_engine, tokenizer, prompts):
    ends = Sampling(temperature=0, logit_bias={tokenizer.eos_ids[0]: 100})
    answer = make_engine().answer(prompts[0], ends)
    assert (answer.text, answer.finish_reason, answer.n_generated) == ("", "stop", 0)


def test_logprobs_are_the_models_and_belong_to_the_text(make_engine, decoder, tokenizer, prompts):
    answer = make_engine().answer(prompts[0], Sampling(temperature=0, max_tokens=8, top_logprobs=3))
    assert len(answer.logprobs) == answer.n_generated == 8
    assert b"".join(each.bytes for each in answer.logprobs).decode("utf-8", "replace") == answer.text
    for each in answer.logprobs:
        assert each.top[0].token == each.token
        assert each.top[0].logprob == pytest.approx(each.logprob)
        assert len(each.top) == 3
    forced = make_engine().answer(
        [*prompts[0], *(each.token for each in answer.logprobs[:3])],
        Sampling(temperature=0, max_tokens=1, top_logprobs=0),
    )
    assert forced.logprobs[0].logprob == pytest.approx(answer.logprobs[3].logprob, abs=1e-4)


def test_a_grammar_holds_the_answer_while_others_are_free(make_engine, prompts):
    import json

    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["city", "n"],
        "additionalProperties": False,
    }
    grammar = constrain.json_schema(schema)
    held = [Sampling(temperature=1.5, seed=n, grammar=grammar, max_tokens=200) for n in range(3)]
    answers = make_engine().answers(prompts[:4], [*held, GREEDY])
    for answer in answers[:3]:
        assert answer.finish_reason == "stop"
        assert set(json.loads(answer.text)) == {"city", "n"}
    assert answers[3].text == make_engine().answer(prompts[3], GREEDY).text


def test_forced_tokens_are_not_computed_one_by_one(make_engine, prompts):
    only = constrain.json_schema({"const": "a long text that leaves no choice at all"})
    answer = make_engine().answer(prompts[0], Sampling(temperature=0, grammar=only))
    assert answer.text == '"a long text that leaves no choice at all"'


def test_a_stream_adds_up_to_the_answer_and_ends_with_a_reason(make_engine, prompts):
    engine = make_engine()

    async def read():
        return [piece async for piece in engine.stream(prompts[1], GREEDY)]

    pieces = asyncio.run(read())
    assert "".join(piece.text for piece in pieces) == make_engine().answer(prompts[1], GREEDY).text
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].n_generated == 20


def test_leaving_a_stream_frees_its_place(make_engine, prompts):
    engine = make_engine(max_batch=1)

    async def leave():
        stream = engine.stream(prompts[1], Sampling(max_tokens=400, seed=1))
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert engine.answer(prompts[0], GREEDY).n_generated == 20
    assert engine.n_live == 0


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([1] * 600, Sampling(), "messages"),
        ([], Sampling(), "messages"),
        ([1], Sampling(logit_bias={10**6: 1.0}), "logit_bias"),
    ],
)
def test_what_can_never_be_answered_is_refused_at_once(make_engine, prompt, params, param):
    with pytest.raises(InvalidRequest) as caught:
        make_engine().answer(prompt, params)
    assert caught.value.param == param


def test_an_answer_ends_where_the_context_ends(make_engine, decoder):
    prompt = [5] * (decoder.shape.max_positions - 3)
    answer = make_engine().answer(prompt, Sampling(temperature=0, logit_bias={2: -100, 0: -100}))
    assert (answer.finish_reason, answer.n_generated) == ("length", 3)


def test_too_many_waiting_requests_are_sent_away(make_engine, prompts):
    engine = make_engine(max_batch=1, max_waiting=1)
    hold = threading.Event()
    engine.submit(prompts[0], GREEDY, deliver=lambda _: hold.wait(10))
    engine.submit(prompts[0], GREEDY, deliver=lambda _: None)
    try:
        with pytest.raises(Overloaded):
            engine.submit(prompts[0], GREEDY, deliver=lambda _: None)
    finally:
        hold.set()


def test_weights_that_give_no_numbers_fail_their_own_request_only(make_engine, decoder, prompts):
    broken = adapter_of(decoder, 1)
    for pair in broken.pairs.values():
        pair.b_OR.fill_(float("nan"))
    engine = make_engine()
    results: dict[str, list] = {"broken": [], "good": []}
    done = threading.Event()
    engine.submit(prompts[1], GREEDY, adapter=broken, deliver=results["broken"].append)

    def keep(item):
        results["good"].append(item)
        if isinstance(item, Exception) or item.finish_reason:
            done.set()

    engine.submit(prompts[1], GREEDY, deliver=keep)
    assert done.wait(20)
    assert isinstance(results["broken"][-1], TunekeeperError)
    wanted = make_engine().answer(prompts[1], GREEDY).text
    assert "".join(piece.text for piece in results["good"]) == wanted
    assert engine.answers(prompts, GREEDY)[1].text == wanted


def test_long_prompts_that_begin_alike_are_answered_as_each_alone(make_engine, tokenizer):
    start = tokenizer.encode("<|im_start|>user\n" + "tell me about the city. " * 40)
    ends = ["paris", "tokyo", "names", "x", "is true", "what is the weather?", "hello", "the assistant"]
    asked = [f"{one} {other}<|im_end|>\n<|im_start|>assistant\n" for one in ends[:4] for other in ends]
    many = [start[:350] + tokenizer.encode(text) for text in asked]
    sampling = Sampling(temperature=0, max_tokens=12, logit_bias={2: -100, 0: -100})
    together = make_engine(cache_tokens=32 * 512, max_batch=32).answers(many, sampling)
    assert sum(answer.n_cached for answer in together) > WORTH_SHARING
    alone = [make_engine().answer(prompt, sampling) for prompt in many]
    assert texts(together) == texts(alone)


def test_steps_are_short_only_while_somebody_reads_an_answer():
    read, unread = chunk_size(0.004, is_read=True), chunk_size(0.004, is_read=False)
    assert (read, unread) == (62, 250)
    assert chunk_size(10.0, is_read=True) == 32, "the prompts go on, however slow the machine is"


def test_closing_ends_what_is_in_the_making(make_engine, prompts):
    engine = make_engine()
    found: list = []
    engine.submit(prompts[0], Sampling(max_tokens=450, logit_bias={2: -100, 0: -100}), deliver=found.append)
    engine.close()
    assert isinstance(found[-1], Unavailable)
    with pytest.raises(Unavailable):
        engine.submit(prompts[0], GREEDY, deliver=found.append)
