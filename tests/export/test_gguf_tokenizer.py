"""Tests of tokenizers in GGUF files: llama.cpp and our reader tokenise as the original does, or a note says not."""

import ctypes
import json
import random
from importlib.util import find_spec

import jax
import numpy as np
import parity
import pytest
import spelt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxdistill.core import registry
from jaxdistill.core.errors import WeightsError
from jaxdistill.core.types import Variables
from jaxdistill.export.formats.gguf import write_file
from jaxdistill.export.formats.gguf_vocabulary import vocabulary
from jaxdistill.export.network import Definition, network_of
from jaxdistill.export.runtimes import llamacpp
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.hub.gguf_tokenizer import known_pre_tokenizers
from jaxdistill.models.hub.gguf_tokenizer import tokenizer as read_tokenizer
from jaxdistill.models.pretrained import architecture_of_spec

NFC = "llama.cpp does not normalise texts: give it texts in Unicode's form NFC."
CORPUS = [f"{spelt.TEXT} 1234567 345 3456 don't I'VE we'll \n\n\t 日本語 привет мир مرحبا 😀"] * 4
TEXTS = [
    "Hello world", "  two  spaces   three\t\ttabs\n\nlines\r\n x ", "In 1789; 3.14159 ½ ² ٣٤ Ⅷ १२३", "", "   ", "\n",
    "Ein schöner Satz, 日本語のテキスト, привет мир, مرحبا", "emoji 😀👨‍👩‍👧 ☂!", "<end>a <end> FIX",
    " unmerged 1234567", "don't we'll I'VE they'd", "a\u00a0b\u3000c\u2028d", "naïve café ﬁ ǅ ʰ",
    "_under_ #hash $5", "x" * 40 + " " * 20 + "y",
]  # fmt: skip
PIECES = [*" \n\t'\"-.,!?019abcXYéßñ日本мираعر😀½²", " ", "\u00a0", "the ", " they", "\r\n", "<end>"]
DRAW = random.Random(0)
TEXTS += ["".join(DRAW.choice(PIECES) for _ in range(DRAW.randint(1, 40))) for _ in range(400)]


@pytest.fixture
def llama_cpp():
    """Return a function that opens a file in llama.cpp; skip the test where llama.cpp is not installed."""
    pytest.importorskip("xllamacpp")
    return lambda file: llamacpp.LanguageModel(file, 1)


def bytes_with(pre, folder):
    """Write a byte-level tokenizer with one of llama.cpp's pre-tokenizers, an end token and an added word."""
    made = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    made.pre_tokenizer, made.decoder = known_pre_tokenizers()[pre], decoders.ByteLevel()
    made.normalizer = normalizers.NFC() if pre == "qwen2" else None
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    content = json.loads(made.to_str())
    content["model"]["vocab"]["Ġunmerged"] = 400  # no merge leads to it; Llama 3 takes it as it stands
    made = Tokenizer.from_str(json.dumps(content))
    made.add_tokens(["FIX"])
    return saved(made, folder)


def saved(made, folder):
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def written(file, folder, end="<end>"):
    """Write a GGUF file of a model with five tokens more than its tokenizer; return the path and the notes."""
    size = max(Tokenizer.from_file(str(file)).get_vocab().values()) + 6
    spec = f"decoder(vocabulary={size}, width=8, depth=1, heads=1, kv_heads=1, head_size=8, ffn=8)"
    model, form = registry.models.build(spec, ""), architecture_of_spec(spec)
    fields = {"input_ids": ((4,), "int32"), "mask": ((4,), "float32")}
    shapes = {field: jax.ShapeDtypeStruct((1, *shape), dtype) for field, (shape, dtype) in fields.items()}
    params = jax.eval_shape(model.init, parity.KEY, shapes)[0]
    variables = Variables({name: np.ones(x.shape, np.float32) for name, x in params.items()}, {})
    definition = Definition(form.family, form.arguments, file, end)
    subject = network_of(model, variables, fields)._replace(definition=definition)
    return folder / "model.gguf", write_file(subject, folder / "model.gguf", "F32")


def tokenized(model, text):
    """Return the token ids that llama.cpp gives a text."""
    function, given = model._library.llama_tokenize, text.encode()
    integers = ctypes.POINTER(ctypes.c_int32)
    function.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, integers, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
    ]  # fmt: skip
    found = (ctypes.c_int32 * (len(given) + 8))()
    vocabulary = model._library.llama_model_get_vocab(model._model)
    return list(found[: function(vocabulary, given, len(given), found, len(found), True, True)])


@pytest.mark.parametrize("pre", list(known_pre_tokenizers()))
def test_our_reader_and_llama_cpp_cut_texts_as_the_tokenizer_does(pre, tmp_path, llama_cpp):
    file = bytes_with(pre, tmp_path)
    made, (path, notes) = Tokenizer.from_file(str(file)), written(file, tmp_path)
    assert notes == (
        ("llama.cpp does not normalise texts: give it texts in Unicode's form NFC.",) if made.normalizer else ()
    )
    read, model = read_tokenizer(Gguf(path)), llama_cpp(path)
    for text in TEXTS:
        ids = made.encode(text).ids
        assert read.encode(text).ids == ids == tokenized(model, text), text
    fields = Gguf(path).fields
    assert fields["tokenizer.ggml.eos_token_id"] == made.token_to_id("<end>")
    kinds = fields["tokenizer.ggml.token_type"]
    assert [kinds[made.token_to_id(token)] for token in ("<end>", "a", "FIX")] == [3, 1, 4]
    assert kinds[-6:] == [1, 5, 5, 5, 5, 5]


def test_the_tokenizer_of_a_file_alone(tmp_path):
    """Check our reader without llama.cpp, which need not be installed."""
    path, _ = written(bytes_with("smollm", tmp_path), tmp_path)
    made, read = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), read_tokenizer(Gguf(path))
    assert [read.encode(text).ids for text in TEXTS] == [made.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize(("template", "adds"), [("<bos> $A", [True, False]), ("<bos> $A <end>", [True, True])])
def test_tokens_around_a_text_and_the_settings_beside_the_tokenizer_are_kept(template, adds, tmp_path, llama_cpp):
    made = Tokenizer.from_file(str(bytes_with("gpt-2", tmp_path)))
    made.add_special_tokens(["<bos>", "<pad>"])
    special = [(token, made.token_to_id(token)) for token in ("<bos>", "<end>")]
    made.post_processor = processors.TemplateProcessing(template, special_tokens=special)
    settings = {"pad_token": {"content": "<pad>"}, "eos_token": "<pad>", "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    path, notes = written(saved(made, tmp_path), tmp_path)
    fields = Gguf(path).fields
    found = {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "padding")}
    assert found == {"bos": special[0][1], "eos": special[1][1], "padding": made.token_to_id("<pad>")}
    assert [fields[f"tokenizer.ggml.add_{key}_token"] for key in ("bos", "eos")] == adds and notes == ()
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert tokenized(llama_cpp(path), "the thing") == made.encode("the thing").ids


def changed(folder, change):
    content = json.loads(bytes_with("gpt-2", folder).read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def set_model(**values):
    return lambda content: content["model"].update(values)


def two_tokens(content):
    piece = {"SpecialToken": {"id": "<end>", "type_id": 0}}
    number = content["model"]["vocab"]["<end>"]
    special = {"<end>": {"id": "<end>", "ids": [number], "tokens": ["<end>"]}}
    single = [piece, piece, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(normalizer={"type": "Lowercase"}), "normalises texts by Lowercase"),
        (lambda content: content["pre_tokenizer"].update(add_prefix_space=True), "splits a text into words in another"),
        (set_model(ignore_merges=True), "applies its merges in another way"),
        (set_model(dropout=0.5), "applies its merges in another way"),
        (set_model(end_of_word_suffix="</w>"), "marks the inside of words"),
        (set_model(merges=[]), "has no merges"),
        (two_tokens, "adds several tokens to a text"),
        (lambda content: content["added_tokens"][0].update(lstrip=True), "has special tokens that take in spaces"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_told_and_ids_work(change, said, tmp_path):
    path, notes = written(changed(tmp_path, change), tmp_path)
    assert len(notes) == 1
    assert notes[0].startswith(f"llama.cpp cannot cut texts as the tokenizer does, which {said}")
    assert notes[0].endswith(": give it token ids, made by tokenizer.json.")
    check_ids(path, tmp_path / "tokenizer.json")


def check_ids(path, tokenizer):
    """Check that a file holds each token's text, that our reader refuses it, and that llama.cpp runs all token ids."""
    made, source = Tokenizer.from_file(str(tokenizer)), Gguf(path)
    tokens, kinds = (source.fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    for token, number in made.get_vocab().items():
        assert token == (tokens[number] if kinds[number] == 3 else decoders.ByteLevel().decode([tokens[number]]))
    with pytest.raises(WeightsError, match=r"use its tokenizer\.json"):
        read_tokenizer(source)
    if find_spec("xllamacpp"):
        ids = np.arange(len(tokens), dtype=np.int32)
        assert np.isfinite(llamacpp.LanguageModel(path, 1).logits(ids)).all()


@pytest.mark.parametrize("kind", ["WordLevel", "Unigram", "BPE of characters"])
def test_tokenizers_of_other_kinds_are_told_too(kind, tmp_path):
    unigram = lambda: Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁the", -2.0), ("a", -3.0)], 0))
    made = {"WordLevel": spelt.words_of, "Unigram": unigram, "BPE of characters": lambda: spelt.pieces_of(9)}[kind]()
    path, notes = written(saved(made, tmp_path), tmp_path, end="")
    assert "give it token ids, made by tokenizer.json" in notes[0]
    check_ids(path, tmp_path / "tokenizer.json")


def test_a_byte_without_a_token_and_a_missing_end_are_told(tmp_path, llama_cpp):
    made = json.loads(bytes_with("gpt-2", tmp_path).read_text())
    letters = "ĄÀ"  # the bytes 04 and C0; UTF-8 texts never contain C0
    made["model"]["vocab"] = {token: n for token, n in made["model"]["vocab"].items() if token not in letters}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    found = vocabulary(tmp_path / "tokenizer.json", 420, "")
    assert not {*letters} & {*found.fields["tokenizer.ggml.tokens"]} and len(found.notes) == 2
    assert found.notes[0].startswith("The tokenizer has no token for 04: llama.cpp may cut")
    assert found.notes[1] == "The tokenizer names no token that ends a text: llama.cpp then takes token 11."
    assert found.fields["tokenizer.ggml.pre"] == "gpt-2"
    model = llama_cpp(written(tmp_path / "tokenizer.json", tmp_path, end="")[0])
    model._library.llama_vocab_eos.argtypes = [ctypes.c_void_p]
    assert model._library.llama_vocab_eos(model._library.llama_model_get_vocab(model._model)) == 11
