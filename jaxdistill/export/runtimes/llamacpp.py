"""Run a GGUF file with llama.cpp, on the CPU: github.com/ggml-org/llama.cpp.

The package xllamacpp is a build of llama.cpp. Its own classes give the distribution after a prompt only, so this module
calls the C interface of the same library (`llama.h`), which gives the logits at every position in one pass.

The interface passes two blocks of parameters by value, and releases of llama.cpp insert fields into them. The blocks
are therefore taken from llama.cpp with their defaults, and the few fields that are changed are found by their defaults.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "xllamacpp"
BATCH = 256  # tokens that are computed at once; llama.cpp allocates memory for multiples of so many
BLOCK_BYTES, KNOWN_BYTES = 512, 128  # more than a block of parameters has; where the changed fields are
ERROR = 4  # GGML_LOG_LEVEL_ERROR
F32, OFF = 0, 0  # GGML_TYPE_F32, LLAMA_FLASH_ATTN_TYPE_DISABLED


class Block(ctypes.Structure):
    """A struct of llama.cpp parameters as raw bytes, because its fields differ between releases."""

    _fields_ = (("bytes", ctypes.c_uint8 * BLOCK_BYTES),)


class Batch(ctypes.Structure):
    """The struct `llama_batch` of llama.cpp: tokens, and flags of those that need logits; null fields mean defaults."""

    _fields_ = (
        ("count", c_int32),
        ("tokens", POINTER(c_int32)),
        ("embeddings", c_void_p),
        ("positions", c_void_p),
        ("sequence_counts", c_void_p),
        ("sequences", c_void_p),
        ("logits", POINTER(c_int8)),
    )


Log = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
ERRORS: list[str] = []  # what llama.cpp has said since the last call began
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {  # of llama.h: type of the result, types of the arguments
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (Block, ()),
    "llama_context_default_params": (Block, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, Block)),
    "llama_init_from_model": (c_void_p, (c_void_p, Block)),
    "llama_free": (None, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_n_ctx": (c_uint32, (c_void_p,)),
    "llama_set_n_threads": (None, (c_void_p, c_int32, c_int32)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits": (POINTER(c_float), (c_void_p,)),
    "llama_log_set": (None, (Log, c_void_p)),
}


def open_file(file: Path, threads: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load a GGUF file, and return the function that it computes, `{"input_ids": [rows, length], ...} -> logits`.

    The logits are `[rows, length, vocabulary]` float32; they are 0 at padding.

    Args:
        file: the GGUF file.
        threads: number of threads.

    Raises:
        RuntimeError: llama.cpp cannot read the file.
    """
    model = LanguageModel(file, threads)

    def run(rows: Mapping[str, np.ndarray]) -> np.ndarray:
        tokens, numbers = rows["input_ids"], documents(rows)
        logits = np.zeros((*tokens.shape, model.vocabulary), np.float32)
        for row in range(len(tokens)):
            for number in np.unique(numbers[row][numbers[row] > 0]):
                places = np.flatnonzero(numbers[row] == number)
                logits[row, places] = model.logits(tokens[row, places])
        return logits

    return run


def documents(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return for each token the number of its document within the row, `[rows, length]`; 0 at padding.

    Args:
        rows: `input_ids` `[rows, length]`; with `segment_ids` if a row holds several documents, and with
            `attention_mask` or `segment_ids` if it holds padding.
    """
    numbers = rows.get("segment_ids", np.ones_like(rows["input_ids"]))
    return numbers * (rows["attention_mask"] > 0) if "attention_mask" in rows else numbers


class LanguageModel:
    """A language model from a GGUF file, run by llama.cpp.

    vocabulary: number of tokens

    Args:
        file: the GGUF file.
        threads: number of threads.

    Raises:
        RuntimeError: llama.cpp cannot read the file; the message has the errors of llama.cpp.
    """

    def __init__(self, file: Path, threads: int):
        library = self._library = load_library()
        ERRORS.clear()
        self._model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot read the file: {' '.join(ERRORS)}")
        self.vocabulary: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self._context, self._room, self._threads = None, 0, threads

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Compute the logits after each token of a text, `[tokens] -> [tokens, vocabulary]` float32.

        Raises:
            RuntimeError: llama.cpp cannot run the text.
        """
        ERRORS.clear()
        self._make_room(len(tokens))
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), False)
        parts = []
        for start in range(0, len(tokens), BATCH):
            part = np.ascontiguousarray(tokens[start : start + BATCH], np.int32)
            wanted = np.ones(len(part), np.int8)
            batch = Batch(
                count=len(part),
                tokens=part.ctypes.data_as(POINTER(c_int32)),
                logits=wanted.ctypes.data_as(POINTER(c_int8)),
            )
            if code := library.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp cannot run {len(tokens)} tokens ({code}): {' '.join(ERRORS)}")
            logits = library.llama_get_logits(self._context)
            parts.append(np.ctypeslib.as_array(logits, (len(part), self.vocabulary)).copy())
        return np.concatenate(parts)

    def _make_room(self, length: int) -> None:
        """Allocate memory for the keys and values of a text of `length` tokens, unless there is enough already."""
        if length <= self._room:
            return
        library = self._library
        if self._context:
            library.llama_free(self._context)
        parameters = context_parameters(library.llama_context_default_params(), length)
        self._context = library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no memory for {length} tokens: {' '.join(ERRORS)}")
        library.llama_set_n_threads(self._context, self._threads, self._threads)
        self._room = library.llama_n_ctx(self._context)


@Log
def keep_error(level: int, text: bytes, _: Any) -> None:
    """Append a message of llama.cpp to `ERRORS` if it is an error; drop any other message."""
    if level == ERROR:
        ERRORS.append(text.decode(errors="replace").strip())


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the library of xllamacpp, and declare the functions of llama.h."""
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(keep_error, None)
    library.llama_backend_init()
    return library


def context_parameters(default: Block, length: int) -> Block:
    """Return the llama.cpp parameters for texts of `length` tokens, with keys, values and attention in 32 bits.

    The default of 16 bits would add a rounding difference that does not come from the file.

    Args:
        default: the block `llama_context_params` with its defaults.
        length: number of tokens.

    Raises:
        RuntimeError: the block of this version has other defaults.
    """
    numbers = np.frombuffer(default, np.int32).copy()
    known = range(KNOWN_BYTES // numbers.itemsize)
    # Rotary scaling, pooling, kind of attention and flash attention: four numbers that are -1
    automatic = [place for place in known if (numbers[place : place + 4] == -1).all()]
    # Types of keys and values: two numbers that are 1 (16 bits), at an address that 8 divides
    halves = [place for place in known[::2] if (numbers[place : place + 2] == 1).all()]
    if [*numbers[:3]] != [512, 2048, 512] or len(automatic) != 1 or len(halves) != 1:
        raise RuntimeError("this version of xllamacpp has other parameters; pip install 'jaxdistill[gguf]'")
    numbers[:3] = -(-length // BATCH) * BATCH, BATCH, BATCH  # tokens of a text, of a batch, and of a pass
    numbers[automatic[0] + 3] = OFF
    numbers[halves[0] : halves[0] + 2] = F32
    return Block.from_buffer_copy(numbers.tobytes())
