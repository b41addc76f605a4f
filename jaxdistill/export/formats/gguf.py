"""GGUF, the file format of llama.cpp, for laptops and phones: github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdistill.core.registry import exporters
from jaxdistill.export import hugging_face
from jaxdistill.export.formats.gguf_vocabulary import vocabulary
from jaxdistill.export.network import Definition, Exporter, Network, Rows
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.gguf import ARCHITECTURES, file_rows, llama_cpp_name

BITS = {"F32": 32, "F16": 16, "Q8_0": 8, "Q4_0": 4, "TQ2_0": 2}  # of a weight, without scales
FAMILY = "decoder"  # the family whose architectures llama.cpp has too


@exporters.register
def gguf(kind: Literal["F16", "F32", "Q8_0", "Q4_0", "TQ2_0"] = "F16") -> Exporter:
    """Write a language model as a GGUF file for llama.cpp, with 2 to 32 bits per weight, and its tokenizer inside.

    The format holds decoders of the architectures llama, qwen2 and qwen3. Vectors (norms and biases) stay in 32 bits.
    Needs the extra `gguf`.

    Args:
        kind: encoding of the matrices. `F32` and `F16` are floats. `Q8_0` and `Q4_0` are integers of 8 or 4 bits, with
            a scale for each 32 weights of a row. `TQ2_0` has the values -1, 0 and 1 in 2 bits, with a scale for each
            256 weights, for a student from quantisation-aware training with `aware(weights=2)`. A matrix whose rows are
            no multiple of 32 (256) stays in 16 bits, which a note says.

    Source: GGUF, github.com/ggml-org/ggml/blob/master/docs/gguf.md; llama.cpp, github.com/ggml-org/llama.cpp.
    """

    def write(network: Network, file: Path, samples: Callable[[], Iterable[Rows]]) -> tuple[str, ...]:
        return write_file(network, file, kind)

    return Exporter(
        "model.gguf",
        ("llamacpp",),
        write,
        ("gguf", "tokenizers"),
        rounds=kind != "F32",
        bits=BITS[kind],
        any_batch=False,
        refuse=refuse,
        reads="a text or token ids",
    )


def refuse(definition: Definition | None) -> str:
    """Return the reason why llama.cpp cannot run a model, and what to use instead, or an empty text if it can.

    Args:
        definition: architecture of the model; None if the model has no Hugging Face format.
    """
    cure = "Use onnx or stablehlo."
    if definition is None or definition.family != FAMILY:
        what = f"a {definition.family}" if definition else "another model"
        return f"llama.cpp runs decoders of the architectures {', '.join(ARCHITECTURES)}, and this is {what}. {cure}"
    arguments = definition.arguments
    if arguments["qkv_bias"] and arguments["heads"] * arguments["head_size"] != arguments["width"]:
        return f"in llama.cpp the heads of a qwen2 are as wide as the model: heads * head_size = width. {cure}"
    if arguments.get("window"):
        return f"the window of attention is not written to GGUF. {cure}"
    if arguments["rope_scaling"]:
        return f"scaled rotary positions (rope_scaling) are not written to GGUF. {cure}"
    return ""


def write_file(network: Network, file: Path, kind: str) -> tuple[str, ...]:
    """Write a decoder as a GGUF file, and return notes: one sentence on each deviation from the model or its tokenizer.

    Args:
        network: the decoder, with its definition.
        file: the file to write.
        kind: encoding of the matrices, such as "Q8_0".
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, quantize

    definition = network.definition
    assert definition is not None  # `refuse` has looked at it
    config = families[definition.family].config(definition.arguments)
    words = vocabulary(definition.tokenizer, config["vocab_size"], definition.end)
    writer = GGUFWriter(file, config["model_type"])
    writer.add_file_type(LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    for key, value in {**metadata(config), **words.fields}.items():
        _add(writer, key, value)
    short = []
    for name, array in hugging_face.weights(definition.family, definition.arguments, network.variables).items():
        x = np.asarray(array, np.float32)
        encoding = GGMLQuantizationType[encoding_of(x.shape, kind)]
        if x.ndim > 1 and encoding.name != kind:
            short.append(name)
        if x.ndim > 1:
            rows = np.empty_like(x)
            rows[file_rows(config, name, x.shape)] = x
            x = rows
        writer.add_tensor(llama_cpp_name(name), quantize(x, encoding), raw_dtype=encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not short:
        return words.notes
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return (
        *words.notes,
        f"The rows of {len(short)} matrices are no multiple of {block}, so F16 holds them: {_list(short)}.",
    )


def encoding_of(shape: tuple[int, ...], kind: str) -> str:
    """Return the GGUF encoding of an array: F32 for vectors, F16 for matrices that `kind` cannot hold, else `kind`.

    An encoding in integers stores blocks of weights, so that the rows of a matrix must be whole blocks.

    Args:
        shape: shape of the array.
        kind: encoding of the matrices, such as "Q8_0".
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return "F32"
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return kind if shape[-1] % block == 0 else "F16"


def metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the config of a decoder in the format of transformers to the metadata of a GGUF file, by key.

    Args:
        config: the config of a llama, qwen2 or qwen3.
    """
    settings = {
        "vocab_size": config["vocab_size"],
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": float(config["rope_theta"]),
    }
    return {f"{config['model_type']}.{key}": value for key, value in settings.items()}


def _add(writer: Any, key: str, value: Any) -> None:
    """Add an entry to the metadata of a GGUF file."""
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[type(value)](key, value)


def _list(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
