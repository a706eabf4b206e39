"""A GGUF file's vocabulary turned into tokenizer.json and tokenizer_config.json.

Two kinds are known: byte-level BPE ("gpt2" in the file: GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece BPE
with byte fallback ("llama": Llama 2, TinyLlama, Mistral). How text is cut before the merges is not in the
file, only the name of a rule; a rule that we do not know is refused, for another cut gives other tokens
without a word. (transformers takes the GPT-2 cut for every file of the kind "gpt2", and so reads two spaces
before a digit otherwise than SmolLM2 was trained to.)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from tunekeeper.errors import InvalidRequest, Unsupported
from tunekeeper.types import Json

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def write(metadata: Mapping[str, Any], directory: Path, *, context_window: int) -> Json:
    """Write the tokenizer's files; return the special ids as generation_config.json has them."""
    tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens", ())
    if not tokens:
        raise InvalidRequest("The GGUF file has no vocabulary; take a file that holds a whole model.")
    kind = metadata.get("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(metadata, tokens)
        elif kind == "llama":
            tokenizer = _sentencepiece(metadata, tokens)
        else:
            raise Unsupported(f"The GGUF file has a tokenizer of the kind {kind!r}; we know 'gpt2' and 'llama'.")
        _add_special_tokens(tokenizer, metadata, tokens)
        text = tokenizer.to_str(pretty=True)
    except InvalidRequest:
        raise
    except Exception as error:  # the tokenizers package raises Exception itself
        raise InvalidRequest(f"The GGUF file's vocabulary does not fit together: {error}.") from error
    (directory / "tokenizer.json").write_text(text + "\n", "utf-8")
    ids = _special_ids(metadata, len(tokens))
    _write_config(metadata, tokens, ids, directory / "tokenizer_config.json", context_window)
    return ids


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    rule = metadata.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", ())]
    tokenizer = Tokenizer(
        BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=rule == "llama-bpe",
        )
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(rule)
    if rule in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(rule: str) -> pre_tokenizers.PreTokenizer:
    if rule in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    patterns = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}
    if rule not in patterns:
        raise Unsupported(
            f"The GGUF file cuts text by the rule {rule!r}, which we do not know. "
            "Take the model's own directory, with its tokenizer.json, with `tunekeeper models add`."
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(patterns[rule]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    types = metadata.get("tokenizer.ggml.token_type", ())
    scores = metadata.get("tokenizer.ggml.scores", ())
    if not len(types) == len(scores) == len(tokens):
        raise InvalidRequest("The GGUF file's tokens have no scores or types; the file is incomplete.")
    unknown = next((token for token, type_ in zip(tokens, types, strict=True) if type_ == _UNKNOWN), None)
    tokenizer = Tokenizer(
        BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=_merges(tokens, scores, types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=_BYTE in types,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, best piece first: SentencePiece's order of joining."""
    pieces = {
        token: score
        for token, score, type_ in zip(tokens, scores, types, strict=True)
        if type_ not in (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)
    }
    merges = []
    for piece in sorted(pieces, key=pieces.__getitem__, reverse=True):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(left, right) for left, right in halves if left in pieces and right in pieces]
    return merges


def _add_special_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str]) -> None:
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (_UNKNOWN, _CONTROL):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif type_ == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    if metadata.get("tokenizer.ggml.add_bos_token", metadata["tokenizer.ggml.model"] == "llama"):
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        if bos is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
            )


def _special_ids(metadata: Mapping[str, Any], vocab_size: int) -> Json:
    ids: Json = {}
    for name, word in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        if (value := metadata.get(f"tokenizer.ggml.{word}_token_id")) is not None:
            ids[name] = value
    ends = [metadata.get(f"tokenizer.ggml.{word}_token_id") for word in ("eos", "eot", "eom")]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    if not distinct:
        raise InvalidRequest("The GGUF file names no end-of-text token; such a model would never stop.")
    ids["eos_token_id"] = distinct[0] if len(distinct) == 1 else distinct
    for name, value in ids.items():
        if any(not 0 <= n < vocab_size for n in (value if isinstance(value, list) else [value])):
            raise InvalidRequest(f"The GGUF file's {name} is {value}, which is outside its vocabulary.")
    return ids


def _write_config(
    metadata: Mapping[str, Any], tokens: Sequence[str], ids: Json, path: Path, context_window: int
) -> None:
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(
            metadata.get("tokenizer.ggml.add_bos_token", metadata["tokenizer.ggml.model"] == "llama")
        ),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_window,
    }
    for name in ("bos", "eos", "pad"):
        value = ids.get(f"{name}_token_id")
        if value is not None:
            config[f"{name}_token"] = tokens[value[0] if isinstance(value, list) else value]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    if unknown is not None:
        config["unk_token"] = tokens[unknown]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
