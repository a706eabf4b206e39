import contextlib
import json
from pathlib import Path

import gguf as gguf_package
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

from tiny_gguf import HEAD_DIM, HEADS, KV_HEADS, permuted, random_weights, write_gguf
from tunekeeper.errors import InvalidRequest, TunekeeperError, Unsupported
from tunekeeper.models import gguf


def converted(source: Path) -> Path:
    directory = source.with_suffix("")
    directory.mkdir()
    gguf.convert(source, directory)
    return directory


def test_the_weights_come_back_under_the_names_of_transformers(tmp_path):
    weights = random_weights(tied=False)
    directory = converted(write_gguf(tmp_path / "m.gguf", weights))
    found = load_file(directory / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_the_head_is_tied_when_the_file_has_none(tmp_path):
    tied = converted(write_gguf(tmp_path / "tied.gguf", random_weights()))
    untied = converted(write_gguf(tmp_path / "untied.gguf", random_weights(tied=False)))
    assert json.loads((tied / "config.json").read_text())["tie_word_embeddings"] is True
    assert json.loads((untied / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1])
def test_quantised_weights_are_what_the_gguf_package_reads(tmp_path, kind):
    weights = random_weights()
    directory = converted(write_gguf(tmp_path / "m.gguf", weights, kind=kind))
    found = load_file(directory / "model.safetensors")

    def through(weight):
        return gguf_package.dequantize(gguf_package.quantize(weight, kind), kind)

    down = "model.layers.1.mlp.down_proj.weight"
    assert np.array_equal(found[down], through(weights[down]))
    # The scales belong to the rows as llama.cpp orders them, and quantising does not mix rows.
    q, k = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight")
    assert np.array_equal(permuted(found[q], HEADS), through(permuted(weights[q], HEADS)))
    assert np.array_equal(permuted(found[k], KV_HEADS), through(permuted(weights[k], KV_HEADS)))
    assert np.allclose(found[down], weights[down], atol=0.2)


def test_a_model_answers_as_transformers_own_conversion_of_the_same_file(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = write_gguf(tmp_path / "m.gguf", random_weights(), kind=Kind.Q8_0)
    directory = converted(source)
    ours = AutoModelForCausalLM.from_pretrained(directory)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    tokens = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert torch.allclose(ours(tokens).logits, theirs(tokens).logits, atol=1e-5)
    our_tokenizer = AutoTokenizer.from_pretrained(directory)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in (
        "the weather in tokyo",
        "it's 20°, naïve\n\n\tcode()",
        "<|im_start|>user\nhello<|im_end|>\n",
        "日本",
    ):
        assert our_tokenizer(text).input_ids == their_tokenizer(text).input_ids
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(our_tokenizer, name) == getattr(their_tokenizer, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours.generation_config, name) == getattr(theirs.generation_config, name)


@pytest.mark.parametrize(("architecture", "qwen3", "bias"), [("qwen2", False, True), ("qwen3", True, False)])
def test_qwen_fits_transformers_model_of_its_config(tmp_path, architecture, qwen3, bias):
    from safetensors.torch import load_file as load_tensors
    from transformers import AutoConfig, AutoModelForCausalLM

    weights = random_weights(qwen3=qwen3, bias=bias, tied=False)
    directory = converted(write_gguf(tmp_path / "m.gguf", weights, architecture=architecture, pre="qwen2"))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    state = load_tensors(directory / "model.safetensors")
    model.load_state_dict(state, strict=True)
    assert all(np.array_equal(state[name].numpy(), weights[name]) for name in weights)


def test_the_biases_of_a_llama_are_unpermuted_too(tmp_path):
    weights = random_weights(bias=True)
    directory = converted(write_gguf(tmp_path / "m.gguf", weights))
    found = load_file(directory / "model.safetensors")
    assert all(np.array_equal(found[name], weights[name]) for name in weights)
    assert json.loads((directory / "config.json").read_text())["attention_bias"] is True


def test_what_is_known_of_the_model_is_told(tmp_path):
    source, directory = write_gguf(tmp_path / "m.gguf", random_weights()), tmp_path / "m"
    directory.mkdir()
    info = gguf.convert(source, directory)
    assert info["license"] == "apache-2.0"
    assert info["context_window"] == 512
    assert info["parameters"] == sum(weight.size for weight in random_weights().values())


def test_progress_goes_to_the_end_of_the_weights(tmp_path):
    source, directory = write_gguf(tmp_path / "m.gguf", random_weights()), tmp_path / "m"
    directory.mkdir()
    seen = []
    gguf.convert(source, directory, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_the_same_file_gives_the_same_bytes(tmp_path):
    write_gguf(tmp_path / "a.gguf", random_weights())
    write_gguf(tmp_path / "b.gguf", random_weights())
    first, second = converted(tmp_path / "a.gguf"), converted(tmp_path / "b.gguf")
    names = sorted(path.name for path in first.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_llama_3_scaling_is_found_again_from_its_divisors(tmp_path):
    import torch
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = converted(write_gguf(tmp_path / "plain.gguf", random_weights()))
    config = AutoConfig.from_pretrained(plain, rope_parameters={"rope_theta": 500000.0, **scaling})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = 1 / 500000.0 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    divisors = (unscaled / scaled.numpy()).astype(np.float32)
    source = write_gguf(
        tmp_path / "m.gguf",
        random_weights(),
        rope_theta=500000.0,
        tensors={"rope_freqs.weight": divisors},
    )
    assert json.loads((converted(source) / "config.json").read_text())["rope_scaling"] == scaling


def test_a_scaling_that_follows_no_rule_of_ours_is_refused(tmp_path):
    source = write_gguf(
        tmp_path / "m.gguf",
        random_weights(),
        tensors={"rope_freqs.weight": np.array([1, 7, 2, 8], dtype=np.float32)},
    )
    with pytest.raises(Unsupported, match="positions"):
        converted(source)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.attention.sliding_window": 256}, "sliding window"),
        ({"llama.attention.key_length": 16}, "part of each head"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"split.count": 3}, "several parts"),
    ],
)
def test_a_variant_that_we_do_not_have_is_refused_by_name(tmp_path, metadata, message):
    source = write_gguf(tmp_path / "m.gguf", random_weights(), metadata=metadata)
    with pytest.raises(Unsupported, match=message):
        converted(source)


def test_another_architecture_is_refused_by_name(tmp_path):
    source = write_gguf(tmp_path / "m.gguf", random_weights(), architecture="gemma2")
    with pytest.raises(Unsupported, match="gemma2"):
        converted(source)


def test_linear_scaling_comes_through(tmp_path):
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    directory = converted(write_gguf(tmp_path / "m.gguf", random_weights(), metadata=metadata))
    config = json.loads((directory / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_a_missing_tensor_is_named(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    source = write_gguf(tmp_path / "m.gguf", random_weights(), without=[name])
    with pytest.raises(InvalidRequest, match=name):
        converted(source)


def test_a_tensor_that_we_do_not_know_is_named(tmp_path):
    extra = {"blk.0.post_attention_norm.weight": np.ones(32, dtype=np.float32)}
    source = write_gguf(tmp_path / "m.gguf", random_weights(), tensors=extra)
    with pytest.raises(Unsupported, match="post_attention_norm"):
        converted(source)


def test_a_file_that_is_cut_short_anywhere_is_a_request_error(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", random_weights()).read_bytes()
    for n, size in enumerate([0, 3, 9, 23, 31, 200, 5000, len(whole) // 2, len(whole) - 1000]):
        path = tmp_path / f"cut{n}.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidRequest, match=r"cut short|not whole|again"):
            converted(path)


def test_bytes_that_are_changed_at_random_never_give_another_kind_of_error(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", random_weights()).read_bytes()
    random = np.random.default_rng(0)
    for n in range(60):
        data = bytearray(whole)
        for place in random.integers(0, 900, size=3):
            data[place] = random.integers(0, 256)
        path = tmp_path / f"broken{n}.gguf"
        path.write_bytes(data)
        with contextlib.suppress(TunekeeperError):
            gguf.read(path)


def test_another_file_is_no_gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InvalidRequest, match="not a GGUF file"):
        gguf.read(tmp_path / "m.gguf")


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Tiny, made of bytes<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)


def test_a_chatml_template_without_tools_becomes_ours_with_its_own_system_text(tmp_path):
    directory = converted(write_gguf(tmp_path / "m.gguf", random_weights(), chat_template=CHATML))
    template = (directory / "chat_template.jinja").read_text()
    assert template == gguf.CHATML_TEMPLATE.read_text().replace(gguf.CHATML_SYSTEM, "You are Tiny, made of bytes")
    assert gguf.CHATML_SYSTEM in gguf.CHATML_TEMPLATE.read_text()


@pytest.mark.parametrize("template", ["{{ messages }} [INST]", "<|im_start|>{% if tools %}x{% endif %}"])
def test_any_other_template_stays_as_it_is(tmp_path, template):
    directory = converted(write_gguf(tmp_path / "m.gguf", random_weights(), chat_template=template))
    assert (directory / "chat_template.jinja").read_text() == template


def test_a_base_without_a_template_gets_none(tmp_path):
    directory = converted(write_gguf(tmp_path / "m.gguf", random_weights()))
    assert not (directory / "chat_template.jinja").exists()
