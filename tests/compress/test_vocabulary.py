"""Tests of a vocabulary cut to a corpus: texts keep their tokens, cut networks their outputs; mistakes are named."""

import json
from pathlib import Path

import jax
import numpy as np
import parity
import pytest
import runs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxdistill.compress.vocabulary import count_tokens, reduce_tokenizer, select_tokens
from jaxdistill.core import registry, seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.types import Variables
from jaxdistill.models.hub.kept_tokens import read_kept_tokens
from jaxdistill.run.commands import vocabulary
from jaxdistill.run.config import differ, make
from jaxdistill.run.distill import check_config
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.cache_identity import teacher_hash, weights_hash

CORPUS = ["the cat sat on the mat", "a dog ran to the cat", "mats and dogs and cats", "sitting dogs run on mats"]
OTHER = ["xylophones and zebras", "the running quizzes", "unrelated words, with marks!"]


def wordpiece(size=120) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(CORPUS + OTHER, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special))
    pair = [(word, made.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", pair)
    return made


def byte_pairs(size=400) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<end>"], initial_alphabet=alphabet)
    made.train_from_iterator(CORPUS + OTHER, trainer)
    return made


def cut(whole: Tokenizer, most=0):
    content = json.loads(whole.to_str())
    counts = count_tokens([np.asarray(whole.encode(text).ids) for text in CORPUS], whole.get_vocab_size())
    ids = select_tokens(content, counts, most)
    return ids, Tokenizer.from_str(json.dumps(reduce_tokenizer(content, ids)))


@pytest.mark.parametrize("kind", [wordpiece, byte_pairs])
def test_texts_of_the_corpus_keep_their_tokens_under_new_numbers(kind):
    whole = kind()
    ids, small = cut(whole)
    assert small.get_vocab_size() == len(ids) < whole.get_vocab_size()
    new = {old: number for number, old in enumerate(ids)}
    for text in [*CORPUS, f"{CORPUS[0]} {CORPUS[3]}"]:
        assert small.encode(text).ids == [new[old] for old in whole.encode(text).ids]
        assert small.encode(text).tokens == whole.encode(text).tokens


@pytest.mark.parametrize("kind", [wordpiece, byte_pairs])
def test_other_texts_are_spelt_with_what_is_left(kind):
    whole = kind()
    ids, small = cut(whole)
    for text in OTHER:
        assert max(small.encode(text).ids) < len(ids)
        assert small.decode(small.encode(text).ids).replace(" ##", "").replace(" ", "") == text.replace(" ", "")


def test_the_more_frequent_are_kept_first_and_what_must_stay_stays():
    whole = wordpiece()
    content = json.loads(whole.to_str())
    counts = count_tokens([np.asarray(whole.encode(text).ids) for text in CORPUS], whole.get_vocab_size())
    every = select_tokens(content, counts)
    few = select_tokens(content, counts, most=len(every) - 6)
    assert set(few) < set(every) and len(few) == len(every) - 6
    dropped = [counts[number] for number in set(every) - set(few)]
    alphabet = {n for word, n in whole.get_vocab().items() if len(word.removeprefix("##")) == 1}
    assert max(dropped) <= min(counts[n] for n in few if counts[n] and n not in alphabet and n > 3)
    with pytest.raises(ValueError, match="tokens must be kept, more than 10"):
        select_tokens(content, counts, most=10)


def test_of_equally_frequent_tokens_the_first_are_kept():
    content = json.loads(wordpiece().to_str())
    counts = np.ones(len(content["model"]["vocab"]), int)
    least = set(select_tokens(content, np.zeros_like(counts)))
    added = set(select_tokens(content, counts, most=len(least) + 3)) - least
    assert added == set(sorted(set(range(len(counts))) - least)[:3])


def test_another_kind_of_tokenizer_is_refused():
    with pytest.raises(ValueError, match="of type 'Unigram' cannot be reduced; supported types: WordPiece, BPE"):
        select_tokens({"model": {"type": "Unigram", "vocab": []}}, np.zeros(3))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Write a network and a tokenizer of 60 tokens and a config; yield its folder, the network's and the config."""
    with runs.registries_as_found():
        folder = tmp_path_factory.mktemp("vocabulary")

        @registry.datasets.register
        def remarks(split: str):
            return [{"text": text, "label": number % 3} for number, text in enumerate(CORPUS)]

        whole = wordpiece(60)
        assert whole.get_vocab_size() == 60
        whole.save(str(folder / "tokenizer.json"))
        hub = parity.write_folder(folder / "hub", parity.reference("bert_classifier"))
        tokens = f"sentences(tokenizer={str(folder / 'tokenizer.json')!r}, length=12)"
        config = make(data={"name": "remarks", "tokens": tokens}, student={"model": f"pretrained({str(hub)!r})"})
        (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
        yield folder, hub, config


def test_a_network_cut_alike_says_the_same_to_the_bit(world, capsys):
    folder, hub, _ = world
    assert vocabulary.run(["--config", str(folder / "config.json"), "--out", str(folder / "cut")]) == 0
    ids, size = read_kept_tokens(str(folder / "cut"))
    assert f"kept {len(ids)} of 60 tokens" in capsys.readouterr().out and size == 60 > len(ids)
    said = []
    for options, file in (("", folder), (f", keep={str(folder / 'cut')!r}", folder / "cut")):
        words = Tokenizer.from_file(str(file / "tokenizer.json"))
        words.enable_padding(length=12)
        words.enable_truncation(12)
        encoded = words.encode_batch(CORPUS)
        batch = {
            "input_ids": np.asarray([e.ids for e in encoded], np.int32),
            "attention_mask": np.asarray([e.attention_mask for e in encoded], np.int32),
            "mask": np.ones(len(CORPUS), np.float32),
        }
        model = registry.models.build(f"pretrained({str(hub)!r}{options})", "model")
        shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), batch))
        said.append(parity.run(model, model.load(shapes).read(), batch).logits)
    np.testing.assert_array_equal(said[0], said[1])


def test_a_cache_of_a_network_that_is_cut_otherwise_is_another(world, tmp_path):
    _, hub, config = world

    def weights_of(ids, spec):
        (tmp_path / "vocabulary.json").write_text(json.dumps({"ids": ids, "size": 60}))
        teacher = {"model": spec.format(f"{str(hub)!r}", repr(str(tmp_path)))}
        return weights_hash(resolve(differ(config, teachers={"cut": teacher}), jax.devices()).live_teacher("cut"))

    for spec in (
        "pretrained({}, keep={})",
        "pretrained({}, (), (), {})",
        "cosine_head(pretrained({}, keep={}), classes=3)",
    ):
        assert weights_of([0, 1, 2], spec) == weights_of([0, 1, 2], spec) != weights_of([0, 1, 3], spec)


def test_the_config_of_a_wrapped_network_is_part_of_what_a_cache_depends_on(world):
    _, hub, config = world
    spec = f"cosine_head(pretrained({str(hub)!r}), classes=3)"
    resolved = resolve(differ(config, teachers={"big": {"model": spec}}), jax.devices())
    assert teacher_hash(resolved.live_teacher("big")).split()[1] == seal.sha256(hub / "config.json")


def test_a_folder_of_something_else_is_not_replaced(world, tmp_path, capsys):
    folder, *_ = world
    for _ in range(2):  # the second time, the command replaces the folder that it wrote
        assert vocabulary.run(["--config", str(folder / "config.json"), "--out", str(tmp_path / "cut")]) == 0
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == sorted(vocabulary.VOCABULARY_FILES)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("mine")
    (tmp_path / "cut" / ".git").mkdir()
    assert vocabulary.run(["--config", str(folder / "config.json"), "--out", str(tmp_path / "cut")]) == 0
    assert (tmp_path / "cut" / ".git").is_dir()
    (tmp_path / "cut" / "notes.txt").write_text("mine")
    for name, other in (("tokenizer", "tokenizer.json"), ("cut", "notes.txt")):
        capsys.readouterr()
        assert vocabulary.run(["--config", str(folder / "config.json"), "--out", str(tmp_path / name)]) == 2
        assert f"--out: '{tmp_path / name}' holds other files ({other})" in capsys.readouterr().err
        assert (tmp_path / name / other).read_text() == "mine"


@pytest.mark.sampled("llama_tied")
@pytest.mark.parametrize("name", ["llama_tied", "llama_untied"])
def test_a_language_model_that_is_cut_says_the_same_of_the_kept_tokens(name, tmp_path):
    ref = parity.reference(name)
    hub, size = parity.write_folder(tmp_path / "hub", ref), ref.config["vocab_size"]
    (tmp_path / "vocabulary.json").write_text(json.dumps({"ids": [*range(1, size, 2)], "size": size}))
    batch = {field: ref.batch[field] for field in ("mask", "input_ids")}
    of_kept = {**batch, "input_ids": batch["input_ids"] | 1}  # the kept tokens are the odd ones
    said = []
    for options, seen in (
        ("", of_kept),
        (f", keep={str(tmp_path)!r}", {**batch, "input_ids": of_kept["input_ids"] // 2}),
    ):
        model = registry.models.build(f"pretrained({str(hub)!r}{options})", "model")
        shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), seen))
        said.append(parity.run(model, model.load(shapes).read(), seen).logits)
    np.testing.assert_allclose(said[1], said[0][..., 1::2], rtol=1e-5, atol=1e-6)


def test_mistakes_are_named(world, tmp_path, capsys):
    folder, hub, config = world
    with pytest.raises(ConfigError, match=r"is not a valid vocabulary .*; create it with `jaxdistill vocabulary`"):
        registry.models.build(f"pretrained({str(hub)!r}, keep={str(tmp_path)!r})", "student.model")
    (tmp_path / "vocabulary.json").write_text(json.dumps({"ids": [0, 1], "size": 59}))
    with pytest.raises(ConfigError, match=r"was cut from 59 tokens, but .* has 60"):
        registry.models.build(f"pretrained({str(hub)!r}, keep={str(tmp_path)!r})", "student.model")
    (tmp_path / "vocabulary.json").write_text(json.dumps({"ids": [1, 0], "size": 60}))
    with pytest.raises(ConfigError, match="ids are not increasing"):
        registry.models.build(f"pretrained({str(hub)!r}, keep={str(tmp_path)!r})", "student.model")
    spec = "bert(vocabulary=59, width=8, depth=1, heads=2, ffn=8, classes=3)"
    terms = {"cross_entropy": {}}
    narrow = differ(config, student={"model": spec}, batch_size=8, objective=terms)
    with pytest.raises(ConfigError, match=r"student\.model: has an embedding of 59 rows, the tokenizer 60 tokens"):
        check_config(narrow, tmp_path / "never")
    words = ["--config", str(folder / "config.json"), "--out", str(tmp_path / "x")]
    assert vocabulary.run([*words, "--config.data.tokens="]) == 2
    assert "error: data.tokens: is empty" in capsys.readouterr().err
    assert vocabulary.run([*words, "--most", "3"]) == 2
    assert "tokens must be kept, more than 3" in capsys.readouterr().err


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_kill_while_a_vocabulary_is_replaced_mixes_no_two(tmp_path, monkeypatch, sealed, kept):
    content = json.loads(wordpiece().to_str())
    vocabulary.write(tmp_path, content, range(30), 60)
    if not sealed:  # earlier versions wrote no seal
        (tmp_path / "seal.json").unlink()
    replace, left = Path.replace, [kept]

    def killed(self, target):
        if target.parent == tmp_path and not left[0]:
            raise KeyboardInterrupt
        left[0] -= target.parent == tmp_path
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        vocabulary.write(tmp_path, content, range(40), 60)
    if not kept:
        assert [*read_kept_tokens(str(tmp_path))[0]] == [*range(30)]
        return
    with pytest.raises(DamageError, match="has changed since it was written"):
        for file in ("vocabulary.json", "tokenizer.json"):
            seal.check_in_folder(tmp_path / file)
