"""Our decoder, transformers and PEFT answer the same on the same numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from forests import tree
from naive import merged
from tunekeeper.errors import InvalidData, Unavailable
from tunekeeper.models.adapters import read_adapter, save_adapter
from tunekeeper.models.decoder import Decoder, LlamaDecoder
from tunekeeper.models.foreign import TransformersDecoder
from tunekeeper.models.load import compute_dtype, load_adapter, load_decoder
from tunekeeper.models.lora import AdapterRows, LoraAdapter, new_adapter
from tunekeeper.trainer.losses import LossInputs, cross_entropy, token_logprobs
from tunekeeper.trainer.trees import TreeAttention, pack
from tunekeeper.types import Tree

TREES = [tree(9, 5, seed=1), tree(4, 7, seed=2), tree(6, 3, 2, seed=3)]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
    "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
FAMILY = {
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "llama3": transformers.LlamaConfig(**SIZES, num_key_value_heads=1, rope_parameters=LLAMA3_ROPE),
    "qwen2": transformers.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "mistral": transformers.MistralConfig(**SIZES, num_key_value_heads=4, sliding_window=None),
}
FOREIGN = {
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300, n_positions=128),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES),
    "phi": transformers.PhiConfig(**SIZES),
}


def save(config: transformers.PretrainedConfig, directory: Path) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # at their initial ones and zeros they could hide a mistake
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def adapter_for(decoder: Decoder) -> LoraAdapter:
    adapter = new_adapter(decoder.linear_modules(), rank=4, alpha=8.0, seed=3)
    generator = torch.Generator().manual_seed(4)
    for pair in adapter.pairs.values():
        pair.b_OR.data.normal_(0, 0.1, generator=generator)
    return adapter


def our_loss(decoder: Decoder, adapter: LoraAdapter | None) -> torch.Tensor:
    packed = pack(TREES)
    rows = (AdapterRows(adapter, 0, packed.size),) if adapter else ()
    hidden_NE = decoder.hidden(
        packed.tokens_T, packed.positions_T, TreeAttention(packed.spans), adapters=rows, rows_N=packed.source_N
    )
    logprob, _ = token_logprobs(hidden_NE, decoder.head_VE, packed.target_N, decoder.head_bias_V)
    return cross_entropy(LossInputs(logprob, packed.weight_N, packed.branch_N), 17.0)


def their_logits(model: torch.nn.Module, each: Tree) -> list[torch.Tensor]:
    return [
        model(input_ids=torch.tensor([each.trunk + branch.tokens])).logits[0, len(each.trunk) - 1 : -1]
        for branch in each.branches
    ]


def their_loss(model: torch.nn.Module) -> torch.Tensor:
    loss = torch.zeros(())
    for each in TREES:
        for branch, logits in zip(each.branches, their_logits(model, each), strict=True):
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(branch.tokens), reduction="sum")
    return loss / 17.0


def relative_error(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    difference = sum(float((a - b).square().sum()) for a, b in zip(got, expected, strict=True))
    return (difference / sum(float(b.square().sum()) for b in expected)) ** 0.5


@pytest.mark.parametrize("family", [*FAMILY, *FOREIGN])
def test_logits_and_adapter_gradients_equal_those_of_transformers_with_peft(family: str, tmp_path: Path) -> None:
    directory = save({**FAMILY, **FOREIGN}[family], tmp_path / family)
    decoder = load_decoder(directory, dtype="fp32")
    assert isinstance(decoder, LlamaDecoder if family in FAMILY else TransformersDecoder)
    adapter = adapter_for(decoder)
    theirs = get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(),
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=adapter.target_modules,
            task_type="CAUSAL_LM",
            fan_in_fan_out=family == "gpt2",
        ),
    )
    weights = dict(theirs.named_parameters())
    pairs = []
    for name, pair in adapter.pairs.items():
        for ours, part in ((pair.a_RI, "A"), (pair.b_OR, "B")):
            weight = weights[f"base_model.model.{name}.lora_{part}.default.weight"]
            weight.data.copy_(ours.detach())
            pairs.append((ours, weight))

    packed = pack(TREES)
    rows = (AdapterRows(adapter, 0, packed.size),)
    with torch.no_grad():
        hidden = decoder.hidden(packed.tokens_T, packed.positions_T, TreeAttention(packed.spans), adapters=rows)
        logits = decoder.logits(hidden[packed.source_N])
        expected = torch.cat([part for each in TREES for part in their_logits(theirs, each)])
    assert relative_error([logits], [expected]) < 1e-4

    loss = our_loss(decoder, adapter)
    loss.backward()
    reference = their_loss(theirs)
    reference.backward()
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    assert relative_error([a.grad for a, _ in pairs], [b.grad for _, b in pairs]) < 1e-4


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_rows_that_are_asked_for_are_those_of_all_rows_with_each_row_s_adapter(family: str, tmp_path: Path) -> None:
    decoder = load_decoder(save({**FAMILY, **FOREIGN}[family], tmp_path / family), dtype="fp32")
    first, second = adapter_for(decoder), adapter_for(decoder)
    for pair in second.pairs.values():
        pair.b_OR.data.neg_()
    packed = pack(TREES)
    attention = TreeAttention(packed.spans)
    adapters = (AdapterRows(first, 3, 9), AdapterRows(second, 9, 12), AdapterRows(first, 20, packed.size))
    with torch.no_grad():
        whole_TE = decoder.hidden(packed.tokens_T, packed.positions_T, attention, adapters=adapters)
        for chosen in ([], [0], [2, 3, 8, 9, 11, 12], [19, 20, packed.size - 1], [10, 10, 30]):
            rows_N = torch.tensor(chosen, dtype=torch.long)
            some_NE = decoder.hidden(packed.tokens_T, packed.positions_T, attention, adapters=adapters, rows_N=rows_N)
            torch.testing.assert_close(some_NE, whole_TE[rows_N])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_gradients_of_full_fine_tuning_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    directory = save({**FAMILY, **FOREIGN}[family], tmp_path / family)
    decoder = load_decoder(directory, dtype="fp32")
    parameters = decoder.trained_parameters()
    our_loss(decoder, None).backward()
    for tensor in parameters.values():
        tensor.data = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
    ours = decoder.checkpoint()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    their_loss(theirs).backward()
    for name, parameter in theirs.named_parameters():
        assert relative_error([ours[name]], [parameter.grad]) < 1e-4, name


def test_a_saved_adapter_loads_in_peft_and_gives_the_same_logits(tmp_path: Path) -> None:
    directory = save(FAMILY["llama"], tmp_path / "base")
    decoder = load_decoder(directory, dtype="fp32")
    adapter = adapter_for(decoder)
    saved = tmp_path / "adapter"
    saved.mkdir()
    save_adapter(adapter, saved, base_id="tiny")
    theirs = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(directory), saved)
    again = load_adapter(saved, decoder)
    packed = pack(TREES[:1])
    with torch.no_grad():
        rows = (AdapterRows(again, 0, packed.size),)
        hidden = decoder.hidden(packed.tokens_T, packed.positions_T, TreeAttention(packed.spans), adapters=rows)
        ours = decoder.logits(hidden[packed.source_N])
        expected = their_logits(theirs, TREES[0])[0]
    assert relative_error([ours], [expected]) < 1e-5


def test_merged_weights_answer_as_base_and_adapter_do(tmp_path: Path) -> None:
    directory = save(FAMILY["qwen2"], tmp_path / "base")
    decoder = load_decoder(directory, dtype="fp32")
    assert isinstance(decoder, LlamaDecoder)
    adapter = adapter_for(decoder)
    whole = LlamaDecoder(decoder.config, merged(decoder.checkpoint(), adapter), dtype=torch.float32, device="cpu")
    with torch.no_grad():
        assert float(our_loss(whole, None)) == pytest.approx(float(our_loss(decoder, adapter)), rel=1e-5)


def test_equal_weights_are_saved_as_equal_bytes(tiny_base: Path, tmp_path: Path) -> None:
    adapter = adapter_for(load_decoder(tiny_base, dtype="fp32"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_adapter(adapter, tmp_path / name, base_id="tiny")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_adapter_of_another_base_is_refused_by_name(tiny_base: Path, tmp_path: Path) -> None:
    adapter = adapter_for(load_decoder(tiny_base, dtype="fp32"))
    save_adapter(adapter, tmp_path, base_id="tiny")
    with pytest.raises(InvalidData, match="made for another base"):
        read_adapter(tmp_path, {"model.layers.0.self_attn.q_proj": (8, 8)})


def test_a_directory_without_weights_says_to_pull_them(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="models pull"):
        load_decoder(tmp_path / "nothing")


def test_a_checkpoint_with_a_missing_tensor_names_it(tiny_base: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cut"
    shutil.copytree(tiny_base, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InvalidData, match=r"model\.layers\.2"):
        load_decoder(directory, dtype="fp32")


def test_bf16_stays_near_fp32(tiny_base: Path) -> None:
    with torch.no_grad():
        exact = our_loss(load_decoder(tiny_base, dtype="fp32"), None)
        rough = our_loss(load_decoder(tiny_base, dtype="bf16"), None)
    assert float(rough) == pytest.approx(float(exact), rel=2e-2)


def test_auto_names_a_dtype_that_this_machine_computes_with() -> None:
    assert compute_dtype("auto") in {torch.float32, torch.bfloat16}
