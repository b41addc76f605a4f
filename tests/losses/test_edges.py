"""Tests of graphs of classes: made from hierarchies, written, read again, and refused with the config's path."""

import json
import os
from pathlib import Path

import pytest
from batches import at_nodes
from checks import assert_close
from terms import build_loss
from terms import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.builders import class_hierarchy, ontologies
from jaxdistill.losses.relations import edges
from jaxdistill.losses.relations.edges import MAX_NODES

# Hierarchies

# 1 entity > 2 animal > 4 cat, 5 dog > 9 Rex, an instance; 1 entity > 3 artifact > 6 vehicle > 7 car, 8 a second "cat"
NOUNS = """  1 a licence
00000001 03 n 01 entity 0 002 ~ 00000002 n 0000 ~ 00000003 n 0000 | all there is
00000002 05 n 0a animal 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 002 @ 00000001 n 0000 ~ 00000004 n 0000 | ten words
00000003 06 n 01 artifact 0 001 @ 00000001 n 0000 | made
00000004 05 n 02 cat 0 true_cat 0 002 @ 00000002 n 0000 + 00000004 v 0101 | purrs
00000005 05 n 01 dog 0 001 @ 00000002 n 0000 | barks
00000006 06 n 01 vehicle 0 001 @ 00000003 n 0000 | rolls
00000007 06 n 01 car 0 001 @ 00000006 n 0000 | has four
00000008 06 n 01 cat 1 001 @ 00000006 n 0000 | a tractor
00000009 05 n 01 Rex 0 001 @i 00000005 n 0000 | a good one
"""
INDEX = """  1 a licence
animal n 1 2 @ ~ 1 1 00000002
car n 1 1 @ 1 1 00000007
cat n 2 2 @ + 2 1 00000004 00000008
dog n 1 1 @ 1 0 00000005
entity n 1 1 ~ 1 0 00000001
rex n 1 1 @i 1 0 00000009
true_cat n 1 1 @ 1 0 00000004
vehicle n 1 1 @ 1 0 00000006
"""
OBO = """format-version: 1.2

[Term]
id: X:1
name: All

[Term]
id: X:2
name: Short stature
alt_id: X:9
synonym: "Small" EXACT layperson []
is_a: X:1 ! All

[Term]
id: X:3
name: Small
is_a: X:2 ! Short stature

[Term]
id: X:4
name: Gone
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
ICD = """<ICD10CM.tabular><version>1</version>
<chapter><name>1</name><desc>Infections (A00-B99)</desc><sectionIndex><sectionRef id="A00-A09"/></sectionIndex>
<section id="A00-A09"><desc>Intestinal (A00-A09)</desc>
<diag><name>A00</name><desc>Cholera</desc><diag><name>A00.0</name><desc>Classical cholera</desc></diag></diag>
<diag><name>A01</name><desc>Typhoid</desc></diag></section>
<section id="B20"><desc>HIV (B20)</desc><diag><name>B20</name><desc>HIV</desc></diag></section></chapter>
<chapter><name>2</name><desc>Neoplasms (C00-D49)</desc></chapter></ICD10CM.tabular>
"""


@pytest.fixture
def wordnet(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "index.noun").write_text(INDEX)
    return tmp_path


def weights(graph: edges.Graph) -> dict[tuple[str, str], float]:
    return {(graph.names[i], graph.names[j]): weight for i, j, weight in graph.edges}


def test_path_similarity_in_wordnets_format_by_hand(wordnet):
    names = ["cat", "dog", "car", "Rex", "animal", "cat#2"]
    found = weights(class_hierarchy.related_graph(names, class_hierarchy.load_hierarchy(str(wordnet))))
    steps = {
        ("cat", "dog"): 2,
        ("cat", "car"): 5,
        ("cat", "Rex"): 3,
        ("cat", "animal"): 1,
        ("cat", "cat#2"): 5,
        ("dog", "car"): 5,
        ("dog", "Rex"): 1,
        ("car", "cat#2"): 2,
    }
    assert len(found) == 15
    for pair, distance in steps.items():
        assert found[pair] == pytest.approx(1 / (1 + distance), abs=1e-6)
    few = class_hierarchy.related_graph(names, class_hierarchy.load_hierarchy(str(wordnet)), least=0.3)
    assert weights(few) == {pair: weight for pair, weight in found.items() if weight >= 0.3}


@pytest.mark.parametrize(
    "name", ["cat", "CAT", "true cat", "n00000004", "moggy / True Cat", "moggy/cat#1", "cat#1/moggy"]
)
def test_a_class_may_be_named_in_many_ways(name, wordnet):
    assert class_hierarchy.concept_of(name, class_hierarchy.load_hierarchy(str(wordnet))) == "n00000004"


@pytest.mark.parametrize("name", ["moggy", "cat#3", "cat#0", "n00000099"])
def test_a_class_may_be_unknown(name, wordnet):
    assert class_hierarchy.concept_of(name, class_hierarchy.load_hierarchy(str(wordnet))) is None


def test_the_nearest_common_ancestor_counts_where_ways_part():
    parents = {"a": ["b", "x"], "b": ["c"], "c": ["root"], "x": ["root"], "d": ["root"], "e": [], "root": []}
    known = ontologies.Hierarchy(parents, {})
    assert class_hierarchy.ancestors("a", known) == {"a": 0, "b": 1, "x": 1, "c": 2, "root": 2}
    for least in (0.0, 0.25):
        graph = class_hierarchy.related_graph(["a", "d", "e"], known, least)
        assert weights(graph) == {("a", "d"): 0.25}  # e has no edge


def test_an_ontology_of_phenotypes(tmp_path):
    (tmp_path / "x.obo").write_text(OBO)
    known = class_hierarchy.load_hierarchy(str(tmp_path / "x.obo"))
    assert known.parents == {"X:1": [], "X:2": ["X:1"], "X:3": ["X:2"]}
    for name, concept in {"short stature": "X:2", "x:9": "X:2", "Small": "X:3", "X:1": "X:1", "Gone": None}.items():
        assert class_hierarchy.concept_of(name, known) == concept  # names are preferred to synonyms
    assert known.senses["small"] == ["X:3", "X:2"]


def test_a_list_of_diagnoses(tmp_path):
    (tmp_path / "icd.xml").write_text(ICD)
    known = class_hierarchy.load_hierarchy(str(tmp_path / "icd.xml"))
    found = weights(class_hierarchy.related_graph(["A00.0", "Typhoid", "hiv", "neoplasms"], known))
    distances = {pair: round(1 / weight) - 1 for pair, weight in found.items()}
    assert distances["A00.0", "Typhoid"] == 3
    assert distances["A00.0", "hiv"] == 4  # a section of one category is that category
    assert distances["A00.0", "neoplasms"] == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", ","], "--classes: ',' has 0 names; give two or more, separated by commas"),
        (
            ["--classes", "cat, dog", "--least", "nan"],
            "--least: nan is no weight of an edge; give a number",
        ),
        (["--classes", "cat, dog", "--least", "0.9"], "no two of these classes are related; give a smaller --least"),
        (["--classes", "cat#x, dog"], "'cat#x': 'x' is no number of a sense; write it as in 'bank#2'"),
        (["--classes", "cat, dog", "--source", "bytes.obo"], "is damaged, or of another format"),
        (["--classes", "cat, dog", "--source", "none.obo"], "'none.obo' holds no concept"),
        (["--classes", "bytes.obo"], "--classes: 'bytes.obo' is no text file"),
        (["--classes", "cat, dog", "--out", "."], "--out: '.' is a folder; choose a file"),
        (["--classes", "x" * 5000 + ", dog"], "1 names are not in the hierarchy: xxx"),
    ],
)
def test_wrong_words_and_files_are_named_in_a_short_line(words, said, wordnet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bytes.obo").write_bytes(b"[Term]\nid: \xff")
    Path("none.obo").touch()
    assert class_hierarchy.run(["--source", str(wordnet), "--out", "edges.json", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1 and len(err) < 800
    assert not Path("edges.json").exists()


@pytest.mark.parametrize(
    ("cats", "said"),
    [
        ("id: X:3\nname: a\nis_a: X:1\n\n[Term]\nid: X:3\nname: b\nis_a: X:2\n", "the id X:3 stands there twice"),
        ("id: X:3\nname: a\nis_a: X:4\n\n[Term]\nid: X:4\nname: b\nis_a: X:3\n", "more general than themselves (X:"),
    ],
)
def test_a_repeated_id_and_a_circle_of_concepts_are_damage(cats, said, tmp_path, capsys):
    (tmp_path / "x.obo").write_text(
        f"[Term]\nid: X:1\nname: cat\n\n[Term]\nid: X:2\nname: dog\nis_a: X:1\n\n[Term]\n{cats}"
    )
    words = ["--source", str(tmp_path / "x.obo"), "--out", str(tmp_path / "edges.json")]
    assert class_hierarchy.run(["--classes", "cat, dog", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and "is damaged" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["x.obo", "x.xml"])
def test_a_pipe_in_place_of_a_hierarchy_is_not_read(name, tmp_path, capsys):
    os.mkfifo(tmp_path / name)
    words = ["--source", str(tmp_path / name), "--out", str(tmp_path / "edges.json")]
    assert class_hierarchy.run(["--classes", "cat, dog", *words]) == 2
    assert "is not a folder with data.noun, a file .obo or .xml" in capsys.readouterr().err


def test_a_class_without_an_edge_is_named(tmp_path, capsys):
    terms = {"X:1": "cat\n", "X:2": "dog\nis_a: X:1\n", "X:3": "car\nis_a: X:99\n"}
    (tmp_path / "x.obo").write_text("\n".join(f"[Term]\nid: {key}\nname: {name}" for key, name in terms.items()))
    words = ["--source", str(tmp_path / "x.obo"), "--out", str(tmp_path / "edges.json")]
    assert class_hierarchy.run(["--classes", "cat, dog, car", *words]) == 0
    assert capsys.readouterr().err == "note: related to no other class: car\n"


@pytest.mark.parametrize("count", ["zzz", "003"])
def test_a_line_of_wordnet_with_another_number_of_pointers_is_damage(count, wordnet, capsys):
    (wordnet / "data.noun").write_text(
        NOUNS.replace("00000003 06 n 01 artifact 0 001", f"00000003 06 n 01 artifact 0 {count}")
    )
    words = ["--source", str(wordnet), "--out", str(wordnet / "edges.json")]
    assert class_hierarchy.run(["--classes", "cat, dog", *words]) == 2
    assert "is damaged, or of another format" in capsys.readouterr().err


def test_by_default_concepts_ten_steps_apart_are_not_related(tmp_path, capsys):
    chain = "".join(f"[Term]\nid: X:{n}\nname: n{n}\nis_a: X:{n - 1}\n\n" for n in range(1, 12))
    (tmp_path / "x.obo").write_text(f"[Term]\nid: X:0\nname: n0\n\n{chain}")
    words = ["--source", str(tmp_path / "x.obo"), "--out", str(tmp_path / "edges.json"), "--overwrite"]
    assert class_hierarchy.run(["--classes", "n0, n9", *words]) == 0 and "1 of 1 pairs" in capsys.readouterr().out
    assert class_hierarchy.run(["--classes", "n0, n10", *words]) == 2 and "are related" in capsys.readouterr().err


def test_an_xml_file_that_is_none_and_a_term_without_an_id_are_named(tmp_path, capsys):
    (tmp_path / "list.xml").write_text("<ICD10CM>")
    (tmp_path / "x.obo").write_text("[Term]\nname: cat\n")
    for name, said in (("list.xml", "is not XML"), ("x.obo", "has 0 lines 'id: ' instead of one")):
        words = ["--classes", "cat, dog", "--source", str(tmp_path / name), "--out", str(tmp_path / "edges.json")]
        assert class_hierarchy.run(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_the_command_writes_what_a_config_reads(wordnet, capsys):
    (wordnet / "names.txt").write_text("cat\ndog\n\ncar\n")
    out = wordnet / "made" / "edges.json"
    assert (
        class_hierarchy.run(["--classes", str(wordnet / "names.txt"), "--out", str(out), "--source", str(wordnet)]) == 0
    )
    assert capsys.readouterr().out == f"3 of 3 pairs of 3 classes are related; written to {out}\n"
    assert edges.read_graph(out).names == ("cat", "dog", "car")
    seen = at_nodes([0, 1, 2, 0, 1, 2])
    written = "((0, 1, 0.333333), (0, 2, 0.166667), (1, 2, 0.166667))"
    for spec in ("graph(edges={})", "related_labels(edges={}, share=0.4)"):
        assert_close(values(spec.format(repr(str(out))), seen), values(spec.format(written), seen))
    again = ["--classes", "cat, dog", "--out", str(out), "--source", str(wordnet)]
    assert (
        class_hierarchy.run(again) == 2 and "exists; choose another file, or add --overwrite" in capsys.readouterr().err
    )
    assert edges.read_graph(out).names == ("cat", "dog", "car")
    assert class_hierarchy.run([*again, "--overwrite"]) == 0 and edges.read_graph(out).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--classes", "cat, moggy, frob"], "2 names are not in the hierarchy: moggy, frob. Give another name"),
        (["--classes", "cat, true cat"], "classes mean the same: cat, true cat. Choose senses"),
        (["--classes", "cat, dog", "--source", "wordnt"], "or a named source. Did you mean 'wordnet'?"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(words, said, wordnet, capsys):
    assert class_hierarchy.run(["--source", str(wordnet), "--out", str(wordnet / "edges.json"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1 and not err.endswith("..\n")
    assert not (wordnet / "edges.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file .*python -m jaxdistill.data.builders.class_hierarchy writes one"),
        ("[", "is not a graph file"),
        ('{"edges": [[0, 1, 0.5]]}', "is not a graph file"),
        ('{"names": [], "edges": [[0, 1]]}', "is not a graph file"),
        ('{"names": ["a", "b"], "edges": [[0, 2, 0.5]]}', "has the node 2, and there are 2 names"),
        ('{"names": "ab", "edges": [[0, 1, 0.5]]}', "'names' is no list of texts"),
        ('{"names": [], "edges": []}', "the graph has no edges"),
        ('{"names": [], "edges": [[0, 1, -1]]}', "is not an edge"),
    ],
)
def test_a_file_that_holds_no_graph_is_refused_with_the_config_path(content, said, tmp_path):
    file = tmp_path / "edges.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"objective: graph: .*{said}"):
        build_loss(f"graph(edges={str(file)!r})")


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ("()", "the graph has no edges"),
        ("((0,),)", r"\(0,\) is not an edge"),
        ("((0, -1),)", "is not an edge"),
        ("((0, 1.5),)", "is not an edge"),
        ("((0, 1, 0),)", "is not an edge"),
        ("((0, 1, 2, 3),)", "is not an edge"),
        ("((0, 1, 2), (1, 0, 3))", "given twice, with different weights"),
        ("((0, 1, 2), (0, 1))", "given twice, with different weights"),
        (f"((0, {MAX_NODES}),)", "renumber the nodes that your records use"),
    ],
)
def test_edges_that_are_none_are_refused(edges, said):
    with pytest.raises(ConfigError, match=said):
        build_loss(f"related_labels(edges={edges})")


@pytest.mark.parametrize("edge", ["[0, true, 0.5]", "[0, 1.0, 0.5]", "[0, 1, 1e999]", "[Infinity, 0, 0.5]"])
def test_an_edge_of_a_file_has_whole_nodes_and_a_finite_weight(edge, tmp_path):
    (tmp_path / "edges.json").write_text(f'{{"names": [], "edges": [{edge}]}}')
    with pytest.raises(ConfigError, match=r"a node is no whole number|is not an edge"):
        build_loss(f"related_labels(edges={str(tmp_path / 'edges.json')!r})")


def test_a_pipe_in_place_of_a_graph_file_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "edges.json")
    with pytest.raises(ConfigError, match="it is no regular file"):
        build_loss(f"class_graph(edges={str(tmp_path / 'edges.json')!r})")


def test_what_is_written_is_read_again(tmp_path):
    graph = edges.Graph(("a", "b c"), ((0, 1, 0.25),))
    edges.write_graph(tmp_path / "g.json", graph)
    assert edges.read_graph(tmp_path / "g.json") == graph
    content = json.loads((tmp_path / "g.json").read_text())
    assert content.pop("seal") and content == {"names": ["a", "b c"], "edges": [[0, 1, 0.25]]}
