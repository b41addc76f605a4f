"""Check that a run would accept every preset, and that every command in the documents is valid."""

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path

import jax
import pytest
import runs
import spelt

from jaxdistill import main
from jaxdistill.core.errors import ConfigError
from jaxdistill.data.describe import Description
from jaxdistill.data.splits import share_records
from jaxdistill.data.text import tokenizer
from jaxdistill.models import pretrained
from jaxdistill.models.hub import locate
from jaxdistill.run import fill, presets
from jaxdistill.run.commands import cache, sweep, train, vocabulary
from jaxdistill.run.commands import plan as planning
from jaxdistill.run.config import override, parse_changes
from jaxdistill.run.config_files import load_config
from jaxdistill.run.plan import ahead, topology
from jaxdistill.run.resolve import resolve
from jaxdistill.run.rules import specs
from jaxdistill.teachers.cache import parse_encoding

CONFIGS = sorted((runs.ROOT / "configs").glob("*.py"))
MINILM = json.loads("""{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0}""")
SMOLLM2 = json.loads("""{"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "hidden_act": "silu", "tie_word_embeddings": true}""")
LITE0 = {"model_type": "efficientnet_lite0"}
WORLD = {"minilm": MINILM, "topics": MINILM, "smollm2": SMOLLM2, "lite0": LITE0, "emoji": LITE0}  # by part of the name
VOCABULARIES = {"runs/topics/used": 30522, "runs/topics/most": 30522, "runs/smollm2/vocabulary": 49152}


def words(file: Path) -> list[str]:
    """Return the presets of a config file: the keys of the tables in which its get_config looks a name up."""
    body = ast.parse(file.read_text()).body
    (made,) = (node for node in body if getattr(node, "name", "") == "get_config")
    if not made.args.args:
        return [""]
    assigned = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    assigned += [node for node in made.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    named = {node.targets[0].id: node.value for node in assigned}
    calls = [node for node in ast.walk(made) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    looked_in = [node.args[1] for node in calls if getattr(node.func, "id", "") == "choose"]
    tables = [x if isinstance(x, ast.Dict) else named.get(getattr(x, "id", None)) for x in looked_in]
    tables = [table for table in tables if isinstance(table, ast.Dict)]
    found = [str(key.value) for table in tables for key in table.keys if isinstance(key, ast.Constant)]
    assert found, f"{file.name} takes a word, and names none"
    return found


PRESETS = [f"{file}:{word}".removesuffix(":") for file in CONFIGS for word in words(file)]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Set up checkpoints that consist of their configs alone, and the vocabularies that earlier commands leave."""

    def opened(text):
        shipped = runs.ROOT / text / "config.json"
        known = json.loads(shipped.read_text()) if shipped.is_file() else None
        return locate.CheckpointConfig(text, known or next(WORLD[part] for part in WORLD if part in text.lower()))

    folder = spelt.written(tmp_path)["few"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "open_config", opened)
    monkeypatch.setattr(tokenizer, "checkpoint_path", lambda text: folder)
    for name, size in VOCABULARIES.items():
        Path(name).mkdir(parents=True)
        Path(name, "vocabulary.json").write_text(json.dumps({"ids": [0, 1, 2], "size": size}))
        Path(name, "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    monkeypatch.setattr(specs.manifest, "choose_step", left_by_a_command)


@pytest.mark.parametrize("file", [file for file in CONFIGS if words(file) != [""]], ids=lambda file: file.name)
def test_a_preset_that_is_none_is_told_with_those_that_are(file):
    with pytest.raises(ConfigError, match=r"--config: unknown preset 'mutal'\..* Known: "):
        load_config(f"{file}:mutal")


def left_by_a_command(folder, which):
    """Return step 1 of a checkpoint, if a command in the docstring of a preset would leave one in the folder."""
    given = [shlex.split(command) for file in CONFIGS for command in commands(file) if "--workdir" in command]
    runs_of = [Path(words[words.index("--workdir") + 1]) for words in given]
    assert folder in [run / "student" / "checkpoints" for run in runs_of], f"no preset's command leaves {folder}"
    return 1


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.rpartition("/")[2])
def test_a_preset_is_sound(preset, world):
    config = load_config(preset)
    assert config.title
    _ = resolve(config, jax.devices()[:1]).definitions
    for stream in {"quiz", "calibration"} & set(config.streams):
        split = config.streams[stream].split
        assert not share_records(split, config.data.train, lambda split: 1000), f"{stream}: seen by the student"
    for name, teacher in config.teachers.items():
        assert teacher.cache == "" or parse_encoding(teacher.cache, name).folder


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_that_comes_along_is_sound(name, world, monkeypatch):
    monkeypatch.setattr(fill, "describe_split", lambda *_: Description(100, {}, 3, 30522, texts=("text",)))
    config = load_config(presets.find(name))
    assert config.title
    resolved = resolve(config, jax.devices()[:1])
    _ = resolved.definitions
    assert not re.search(r"\{(classes|vocabulary|texts)\}", str(resolved.config.to_dict()))


def test_a_placeholder_needs_what_the_data_know(monkeypatch):
    monkeypatch.setattr(fill, "describe_split", lambda *_: Description(100, {}, None, None))
    config = load_config(presets.find("features"))
    with pytest.raises(
        ConfigError, match=r"^student.model: .* asks for \{classes\}, and the data have no known classes"
    ):
        resolve(config, jax.devices()[:1])
    config = load_config(presets.find("text"))
    with pytest.raises(ConfigError, match=r"^data.tokens: .* asks for \{texts\}, and the records of .* have no texts"):
        resolve(config, jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"^--preset: unknown preset 'txt'. Did you mean 'text'\?"):
        presets.find("txt")


PLAN = ahead.Plan({}, 1, {}, 0, None, ahead.Flops(0.0, 0), {}, "")
DOCUMENTS = [runs.ROOT / "README.md", runs.ROOT / "Makefile", *CONFIGS]
DOCUMENTS += [*(runs.ROOT / "experiments").rglob("*.md"), *(runs.ROOT / "tpu").glob("*.md")]


def commands(file: Path) -> list[str]:
    """Return the `python -m` commands of a document, from the module on and without remarks after them."""
    text = file.read_text() if file.suffix != ".py" else ast.get_docstring(ast.parse(file.read_text())) or ""
    text = re.sub(r"(?m)^\t@echo .*", "", text.replace("\\\n", " "))
    text = re.sub(
        rf"(?m)(?<![\w.])jaxdistill ({'|'.join(main.COMMANDS)}) (?=-)", r"python -m jaxdistill.main \1 ", text
    )
    found = re.findall(r"(?:python|\(python\)) -m ((?:jaxdistill|experiments)[^`\n]*)", text)
    return [re.split(r"\s+#|\s+\(|\s{3,}[a-z]", command)[0].strip() for command in found]


GIVEN = [(file, command) for file in DOCUMENTS for command in commands(file)]


@pytest.mark.parametrize(("file", "command"), GIVEN, ids=lambda each: getattr(each, "name", str(each)[:60]))
def test_a_command_of_a_document_can_be_given(file, command, monkeypatch):
    module, *rest = shlex.split(command.replace("configs/x.py", "configs/quickstart.py"))
    monkeypatch.chdir(runs.ROOT)
    taken = []
    monkeypatch.setattr(cache, "write", lambda config, console: taken.append(config))
    monkeypatch.setattr(vocabulary, "reduce_vocabulary", lambda config, folder, max_tokens: taken.append(config) or "")
    monkeypatch.setattr(ahead, "plan", lambda config, topology: taken.append(config) or PLAN)
    monkeypatch.setattr(topology, "find", lambda name, slices: topology.Topology(name, [], None))
    if not rest or "--help" in rest:
        return
    command = rest.pop(0) if module == "jaxdistill.main" and rest[0] in main.COMMANDS else "train"
    if module == "jaxdistill.main" and command == "train":
        known, more = train.parser().parse_known_args(rest)
        chosen = known.config or presets.find(known.preset)
        if not chosen.startswith(("runs/", "mine.py")):  # these are left by an earlier command or the reader
            override(load_config(chosen), parse_changes(more))
    elif module == "jaxdistill.main" and command == "plan":
        assert planning.run(rest) == 0
        assert taken
    elif module == "jaxdistill.main" and command in ("cache", "vocabulary"):
        assert {"cache": cache, "vocabulary": vocabulary}[command].run(rest) == 0
        assert taken
    elif module == "jaxdistill.main":
        words = Path(importlib.util.find_spec(f"jaxdistill.run.commands.{command}").origin).read_text()
        words += Path(sweep.__file__).with_name("cli.py").read_text()
        assert all(f'"{word.partition("=")[0]}"' in words for word in rest if re.match("--(?!config.)", word))
    else:
        spec = importlib.util.find_spec(module)
        home = importlib.util.find_spec(f"{module}.__main__") if spec and spec.submodule_search_locations else spec
        assert home and home.origin
        with runs.registries_as_found():  # a study registers its own parts
            importlib.import_module(home.name)  # fails if the module is broken
        options = [word.partition("=")[0] for word in rest if word.startswith("--")]
        words = Path(home.origin).read_text()
        for shared in (
            "jaxdistill/run/commands/sweep.py: sweep.main(",
            "jaxdistill/run/commands/sweep.py: sweep.parser(",
            "jaxdistill/run/commands/cli.py: cli.parser(",
        ):
            file, _, call = shared.partition(": ")
            words += (runs.ROOT / file).read_text() if call in words else ""
        assert all(f'"{option}"' in words for option in options)
