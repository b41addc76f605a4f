"""Relations from outside: graphs made from hierarchies, and the two losses that read them."""

import itertools
import json
from dataclasses import replace

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import assert_close, signals
from examples import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Signals
from jaxdistill.data.builders import class_hierarchy
from jaxdistill.losses.relations import class_graph
from jaxdistill.losses.relations.class_graph import MAX_NODES, parse_edges
from jaxdistill.losses.relations.graph import edge_weights
from jaxdistill.losses.relations.related_labels import label_shares

KEY = jax.random.key(0)


def at_nodes(nodes, seed: int = 0) -> Signals:
    """A batch whose examples stand at these nodes, in the field `label`."""
    seen = signals(seed, batch=(len(nodes),))
    return replace(seen, batch=seen.batch | {"label": np.asarray(nodes, np.int32)})


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


def weights(graph: class_graph.Graph) -> dict[tuple[str, str], float]:
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


@pytest.mark.parametrize("name", ["cat", "CAT", "true cat", "n00000004", "moggy / True Cat", "moggy/cat#1"])
def test_a_class_may_be_named_in_many_ways(name, wordnet):
    assert class_hierarchy.concept_of(name, class_hierarchy.load_hierarchy(str(wordnet))) == "n00000004"


@pytest.mark.parametrize("name", ["moggy", "cat#3", "cat#0", "n00000099"])
def test_a_class_may_be_unknown(name, wordnet):
    assert class_hierarchy.concept_of(name, class_hierarchy.load_hierarchy(str(wordnet))) is None


def test_the_nearest_common_ancestor_counts_where_ways_part():
    parents = {"a": ["b", "x"], "b": ["c"], "c": ["root"], "x": ["root"], "d": ["root"], "e": [], "root": []}
    known = class_hierarchy.Hierarchy(parents, {})
    assert class_hierarchy.ancestors("a", known) == {"a": 0, "b": 1, "x": 1, "c": 2, "root": 2}
    assert weights(class_hierarchy.related_graph(["a", "d", "e"], known)) == {("a", "d"): 0.25}  # and nothing joins e


def test_an_ontology_of_phenotypes(tmp_path):
    (tmp_path / "x.obo").write_text(OBO)
    known = class_hierarchy.load_hierarchy(str(tmp_path / "x.obo"))
    assert known.parents == {"X:1": [], "X:2": ["X:1"], "X:3": ["X:2"]}
    for name, concept in {"short stature": "X:2", "x:9": "X:2", "Small": "X:3", "X:1": "X:1", "Gone": None}.items():
        assert class_hierarchy.concept_of(name, known) == concept  # a name is more than a synonym of another
    assert known.senses["small"] == ["X:3", "X:2"]


def test_a_list_of_diagnoses(tmp_path):
    (tmp_path / "icd.xml").write_text(ICD)
    known = class_hierarchy.load_hierarchy(str(tmp_path / "icd.xml"))
    found = weights(class_hierarchy.related_graph(["A00.0", "Typhoid", "hiv", "neoplasms"], known))
    distances = {pair: round(1 / weight) - 1 for pair, weight in found.items()}
    assert distances["A00.0", "Typhoid"] == 3
    assert distances["A00.0", "hiv"] == 4  # a section of one category is that category
    assert distances["A00.0", "neoplasms"] == 5


def test_the_command_writes_what_a_config_reads(wordnet, capsys):
    (wordnet / "names.txt").write_text("cat\ndog\n\ncar\n")
    out = wordnet / "made" / "edges.json"
    assert (
        class_hierarchy.run(["--classes", str(wordnet / "names.txt"), "--out", str(out), "--source", str(wordnet)]) == 0
    )
    assert capsys.readouterr().out == f"3 of 3 pairs of 3 classes are related; written to {out}\n"
    assert class_graph.read_graph(out).names == ("cat", "dog", "car")
    seen = at_nodes([0, 1, 2, 0, 1, 2])
    written = "((0, 1, 0.333333), (0, 2, 0.166667), (1, 2, 0.166667))"
    for spec in ("graph(edges={})", "related_labels(edges={}, share=0.4)"):
        assert_close(values(spec.format(repr(str(out))), seen), values(spec.format(written), seen))


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
        ('{"names": [], "edges": []}', "the graph has no edges"),
        ('{"names": [], "edges": [[0, 1, -1]]}', "is not an edge"),
    ],
)
def test_a_file_that_holds_no_graph_is_refused_with_the_config_path(content, said, tmp_path):
    file = tmp_path / "edges.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"objective: graph: .*{said}"):
        examples.build_loss(f"graph(edges={str(file)!r})")


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
        examples.build_loss(f"related_labels(edges={edges})")


# Relations along a graph


def table(edges, nodes: int) -> np.ndarray:
    """The weights of a graph as a table."""
    found = np.zeros((nodes, nodes))
    for one, other, *weight in edges:
        found[one, other] = found[other, one] = weight[0] if weight else 1
    return found


GRAPHS = {
    "one edge": ((0, 1),),
    "weights": ((0, 1, 0.5), (2, 0, 2.0), (3, 3), (1, 0, 0.5)),
    "the largest number": (
        (MAX_NODES - 1, 0),
        (MAX_NODES - 2, MAX_NODES - 1, 0.25),
        (MAX_NODES - 1, MAX_NODES - 1, 0.125),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_weight_between_two_rows_is_that_of_their_nodes(name):
    edges = GRAPHS[name]
    nodes = np.array([0, 1, 2, 3, 0, 3, MAX_NODES - 1, MAX_NODES - 2, -1, MAX_NODES, 2**31 - 1])
    by_table = {frozenset(edge[:2]): (*edge, 1.0)[2] for edge in edges}
    expected = [[by_table.get(frozenset((i, j)), 0.0) for j in nodes] for i in nodes]
    found = jax.jit(lambda nodes: edge_weights(nodes, parse_edges(edges)))(nodes.astype(np.int32))
    assert_close(found, np.array(expected))


COMPLETE = tuple((i, j) for i in range(6) for j in range(i, 6))


def test_along_a_complete_graph_it_is_the_relation_of_the_batch():
    seen = at_nodes([3, 1, 0, 5, 2, 4])
    assert_close(values(f"graph(edges={COMPLETE})", seen), values("rkd(distance=1.0, angle=0.0)", seen))
    assert_close(values(f"graph(edges={COMPLETE}, relation='similarity')", seen), values("similarity", seen))
    without = tuple(edge for edge in COMPLETE if edge != (0, 5))
    assert abs(values(f"graph(edges={without})", seen) - values("rkd(distance=1.0, angle=0.0)", seen)) > 1e-4


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def by_loops(relation: str, student, teacher, w) -> float:
    if relation == "similarity":
        rows = lambda x: np.array([r / (np.linalg.norm(r) or 1) for r in w * (x @ x.T)])
        return ((rows(student) - rows(teacher)) ** 2).sum() / w.sum()

    def relative(x):
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return d / ((w * d).sum() / w[d > 0].sum())

    return (w * huber(relative(student) - relative(teacher))).sum() / w.sum()


EDGES = ((0, 1), (1, 2, 0.5), (2, 4, 3.0), (0, 0))
NODES = [0, 1, 2, 2, 0, 3, 4, 9]  # 3 and 9 have no edges


@pytest.mark.parametrize("relation", ["distance", "similarity"])
@pytest.mark.parametrize("level", ["records", "classes"])
def test_relations_along_a_graph_by_loops(relation, level):
    seen = at_nodes(NODES)
    seen = replace(seen, mask=np.float32([1, 1, 1, 1, 1, 1, 0, 1]))  # the only example of node 4 does not count
    rows = [np.asarray(x.embedding, np.float64) for x in (seen.student, seen.teachers[0])]
    counts, nodes, w = np.asarray(seen.mask) > 0, np.array(NODES), table(EDGES, 10)
    if level == "records":
        rows, w = [x[counts] for x in rows], w[nodes[counts]][:, nodes[counts]]
    else:
        present = np.unique(nodes[counts])
        rows = [np.stack([x[counts & (nodes == node)].mean(0) for node in present]) for x in rows]
        w = w[present][:, present]
    found = values(f"graph(edges={EDGES}, relation={relation!r}, level={level!r})", seen)
    assert_close(found, by_loops(relation, *rows, w), rtol=1e-5)


@pytest.mark.parametrize("relation", ["distance", "similarity"])
def test_examples_without_an_edge_do_not_move(relation):
    seen = at_nodes(NODES)
    term = examples.build_loss(f"graph(edges={EDGES}, relation={relation!r})")

    def loss(embedding):
        return term.apply({}, {}, replace(seen, student=replace(seen.student, embedding=embedding)), key=KEY)[0]

    slope = np.abs(jax.jit(jax.grad(loss))(seen.student.embedding)).max(1)
    assert (slope > 0).tolist() == [True, True, True, True, True, False, True, False]


def test_a_batch_without_an_edge_is_no_loss():
    for relation, level in itertools.product(("distance", "similarity"), ("records", "classes")):
        assert values(f"graph(edges={EDGES}, relation={relation!r}, level={level!r})", at_nodes([1, 1, 3, 7])) == 0


def test_nodes_come_from_the_field_that_the_config_names():
    seen = at_nodes([0, 0, 0, 0, 0, 0])
    assert values("graph(edges=((0, 1), (1, 2)))", seen) == 0
    assert values("graph(edges=((0, 1), (1, 2)), node='index')", seen) > 0
    for node in ("domain", "label_probs"):
        with pytest.raises(ValueError, match=rf"node='{node}' is not a field .* Such fields: index, label"):
            values(f"graph(edges=((0, 1),), node='{node}')", seen)


# Labels smoothed over related classes


def test_related_labels_by_hand():
    logits = np.log(np.float32([[0.5, 0.25, 0.15, 0.1]] * 3))
    seen = replace(signals(batch=(3,)), student=replace(signals().student, logits=logits))
    seen = replace(seen, batch={"label": np.int32([0, 1, 3])})
    log = np.log
    by_hand = [-0.6 * log(0.5) - 0.3 * log(0.25) - 0.1 * log(0.15), -0.6 * log(0.25) - 0.4 * log(0.5), -log(0.1)]
    assert_close(values("related_labels(edges=((0, 1, 0.75), (2, 0, 0.25)), share=0.4)", seen), by_hand)


@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_on_a_complete_graph_it_is_label_smoothing_and_without_a_share_the_hard_label(batch):
    seen, complete = signals(batch=batch), tuple((i, j) for i in range(5) for j in range(i, 5))
    for share in (0.0, 0.1, 1.0):
        smoothed = share if share < 1 else 1 - 1e-7
        expected = values(f"cross_entropy(label_smoothing={smoothed})", seen)
        assert_close(values(f"related_labels(edges={complete}, share={share})", seen), expected)


def test_it_is_cross_entropy_with_the_smoothed_distribution():
    seen, edges = signals(batch=(40,)), ((0, 1, 0.2), (1, 2), (1, 4, 3.0), (2, 2, 0.5))
    w = table(edges, 5)
    total = w.sum(1, keepdims=True)
    smoothed = np.where(total > 0, 0.7 * np.eye(5) + 0.3 * w / np.where(total > 0, total, 1), np.eye(5))
    target = np.float32(smoothed[np.asarray(seen.batch["label"])])
    expected = values("cross_entropy(target='smooth')", replace(seen, batch=seen.batch | {"smooth": target}))
    assert_close(values(f"related_labels(edges={edges}, share=0.3)", seen), expected)
    related, shares = label_shares(parse_edges(edges), 0.3, 5)
    assert related.shape == (5, 4)  # itself, and the three of class 1
    assert_close(np.sum(shares, 1), np.ones(5))


def test_a_class_that_is_not_related_adds_nothing_whatever_its_logit():
    seen = signals(batch=(2,), classes=3)
    seen = replace(seen, batch={"label": jnp.asarray(np.int32([0, 1]))})
    term = examples.build_loss("related_labels(edges=((0, 1),), share=0.5)")

    def loss(logits):
        masked = jnp.where(jnp.arange(3) < 2, logits, -jnp.inf)
        return term.apply({}, {}, replace(seen, student=replace(seen.student, logits=masked)), key=KEY)[0].sum()

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.zeros((2, 3)))
    assert_close((value, slope), (2 * np.log(2), np.zeros((2, 3))))


def test_labels_that_do_not_fit_are_told_with_the_cure():
    seen = signals()
    with pytest.raises(ValueError, match="the graph names class 7, but the student has 5"):
        values("related_labels(edges=((0, 7),))", seen)
    with pytest.raises(ValueError, match="target='labels' is not a field"):
        values("related_labels(edges=((0, 1),), target='labels')", seen)
    with pytest.raises(ConfigError, match="share must be between 0 and 1"):
        examples.build_loss("related_labels(edges=((0, 1),), share=1.5)")


def test_what_is_written_is_read_again(tmp_path):
    graph = class_graph.Graph(("a", "b c"), ((0, 1, 0.25),))
    class_graph.write_graph(tmp_path / "g.json", graph)
    assert class_graph.read_graph(tmp_path / "g.json") == graph
    assert json.loads((tmp_path / "g.json").read_text()) == {"names": ["a", "b c"], "edges": [[0, 1, 0.25]]}
