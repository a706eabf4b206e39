"""Weights in the order in which the processor multiplies them, for answering.

A product of a few rows with a large matrix, which is what generating is, spends most of its time on fetching the
matrix. Several rows: oneDNN orders it once, so that all cores fetch it as they need it. One row in fp32: a matrix with
more outputs than inputs is fetched faster transposed, and by one core, which waits for no other; in bf16 the ordered
form is the fastest for one row too.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tunekeeper.models.decoder import Decoder, LlamaDecoder
from tunekeeper.models.lora import LoraAdapter

TYPICAL_ROWS = 16
"""The number of rows that the order is chosen for; any number can be multiplied."""

BOTH_UP_TO_BYTES = 2 * 1024**3
"""Weights larger than this together are not kept in a second form for single rows."""


class PackedWeight(Tensor):
    """A weight that only `F.linear` can use."""

    for_rows: Tensor
    for_one_IO: Tensor | None
    """Transposed as seen, whichever way it lies in memory."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Multiply by the form that suits the rows; everything else is as for any tensor."""
        if func is not F.linear:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        x, weight, bias = (*args, None)[:3]
        if x.shape[0] == 1 and weight.for_one_IO is not None:
            return x @ weight.for_one_IO if bias is None else torch.addmm(bias, x, weight.for_one_IO)
        return torch.ops.mkldnn._linear_pointwise.default(x, weight.for_rows, bias, "none", [], "")


def pack(decoder: Decoder) -> None:
    """Order the weights of a decoder that will only answer; where it would not help, nothing changes."""
    if not isinstance(decoder, LlamaDecoder) or not _helps(decoder):
        return
    shapes = [*decoder.linear_modules().values(), tuple(decoder.head_VE.shape)]
    _pack(decoder, both=4 * sum(outputs * inputs for outputs, inputs in shapes) <= BOTH_UP_TO_BYTES)


def _pack(decoder: LlamaDecoder, *, both: bool) -> None:
    for layer in decoder.layers:
        layer.qkv_OE = _packed(layer.qkv_OE, both=both)
        layer.o_EO = _packed(layer.o_EO, both=both)
        layer.gate_up_FE = _packed(layer.gate_up_FE, both=both)
        layer.down_EF = _packed(layer.down_EF, both=both)
    decoder._head_VE = _packed(decoder.head_VE, both=both)


def packed_view(decoder: Decoder) -> Decoder:
    """A decoder of the same weights in that order, beside one that goes on to train an adapter on them.

    It costs their memory once more; where it would not help, it is the decoder itself.
    """
    if not isinstance(decoder, LlamaDecoder) or not _helps(decoder):
        return decoder
    view = copy.copy(decoder)
    view.layers = [copy.copy(layer) for layer in decoder.layers]
    _pack(view, both=False)
    return view


def merge(view: Decoder, decoder: Decoder, adapter: LoraAdapter) -> bool:
    """Let a view of a decoder answer as that one does with the adapter on all tokens, at no cost a token.

    False: it cannot, and answers as before; in bf16 the sum would round most of the change away. Nothing may be
    computing with the view.
    """
    if view is decoder or adapter.scope != "all" or decoder.dtype != torch.float32:
        return False
    for layer, plain, attribute, names, widths in _adapted(view, decoder, adapter):
        setattr(layer, attribute, _packed(adapter.merged(getattr(plain, attribute), names, widths), both=False))
    return True


def unmerge(view: Decoder, decoder: Decoder, adapter: LoraAdapter) -> None:
    """Give the memory of what was merged back; until it is merged again the view answers without adapter, slowly."""
    for layer, plain, attribute, _, _ in _adapted(view, decoder, adapter):
        setattr(layer, attribute, getattr(plain, attribute))


def _adapted(
    view: Decoder, decoder: Decoder, adapter: LoraAdapter
) -> Iterator[tuple[Any, Any, str, tuple[str, ...], tuple[int, ...]]]:
    """Each weight that the adapter changes: the view's layer, the decoder's, the attribute, its modules and widths."""
    assert isinstance(view, LlamaDecoder)
    assert isinstance(decoder, LlamaDecoder)
    size, inner = decoder.shape.hidden_size, decoder.shape.inner_size
    for layer, plain in zip(view.layers, decoder.layers, strict=True):
        weights = (
            ("qkv_OE", plain.qkv_names, decoder.qkv_widths),
            ("o_EO", plain.o_names, (size,)),
            ("gate_up_FE", plain.gate_up_names, (inner, inner)),
            ("down_EF", plain.down_names, (size,)),
        )
        for attribute, names, widths in weights:
            if any(module in adapter.pairs for module in names):
                yield layer, plain, attribute, names, widths


def _helps(decoder: Decoder) -> bool:
    if decoder.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return decoder.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _packed(weight_OI: Tensor, *, both: bool) -> PackedWeight:
    # What the tensor itself holds is nothing: the plain data is let go unless a form of it is kept.
    weight = torch.empty(0).as_subclass(PackedWeight)
    weight.for_rows = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), TYPICAL_ROWS)
    is_wide = weight_OI.shape[0] > weight_OI.shape[1]
    apart = both and weight_OI.dtype == torch.float32
    weight.for_one_IO = (weight_OI.T.contiguous() if is_wide else weight_OI.T) if apart else None
    return weight
