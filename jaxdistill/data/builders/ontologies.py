"""Read hierarchies of concepts: WordNet, ontologies in the format OBO, and the diagnoses of ICD-10-CM."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Hierarchy(NamedTuple):
    """A hierarchy of concepts, such as WordNet, in which a concept may have several parents.

    parents: for each concept id, the ids of the next more general concepts; empty for a root
    senses: for each name, in lower case with underscores for spaces, the ids of the concepts that the name can mean,
        the preferred meaning first
    """

    parents: Mapping[str, Sequence[str]]
    senses: Mapping[str, Sequence[str]]


QUOTED = r'"((?:[^"\\]|\\.)*)"'  # a text in quotes, in which a backslash escapes the next letter


def wordnet(folder: Path) -> Hierarchy:
    """Read the hierarchy of nouns from a folder in WordNet's format (`index.noun`, `data.noun`).

    The ids of the concepts are those of ImageNet, such as n02123045.

    Raises:
        ValueError, IndexError: a line has another form.
    """

    def lines(name: str) -> Iterator[list[str]]:
        text = (folder / name).read_text("utf-8")
        # lines that begin with two spaces are the licence
        return (line.split("|")[0].split() for line in text.splitlines() if not line.startswith("  "))

    parents, senses = {}, {}
    for fields in lines("data.noun"):
        pointers = fields[5 + 2 * int(fields[3], 16) :]  # after the words (number in base 16) and the pointer count
        if len(pointers) != 4 * int(fields[4 + 2 * int(fields[3], 16)]):
            raise ValueError(f"the concept {fields[0]} has another number of pointers than its line says")
        kinds_and_offsets = zip(pointers[0::4], pointers[1::4], strict=False)
        parents[f"n{fields[0]}"] = [f"n{offset}" for kind, offset in kinds_and_offsets if kind in ("@", "@i")]
    for fields in lines("index.noun"):
        senses[fields[0]] = [f"n{offset}" for offset in fields[-int(fields[2]) :]]
    return Hierarchy(parents, senses)


class Concept(NamedTuple):
    """A concept of an ontology, such as a phenotype.

    id: identifier, such as HP:0000054
    name: name
    synonyms: all synonyms
    exact: the synonyms that mean exactly the concept
    definition: definition as a text; empty if there is none
    parents: identifiers of the next more general concepts
    former_ids: identifiers that the concept had before
    """

    id: str
    name: str
    synonyms: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    definition: str = ""
    parents: tuple[str, ...] = ()
    former_ids: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the synonyms, and the definition if there is one."""
        return (*self.synonyms, *([self.definition] if self.definition else []))


def read_concepts(content: str) -> Iterator[Concept]:
    """Yield the concepts of an ontology that are not obsolete, in the order of the file.

    Args:
        content: content of a file in the format OBO.

    Raises:
        ValueError: a concept has no id, or several.
    """
    for stanza in re.split(r"^(?=\[)", content, flags=re.MULTILINE):
        if not stanza.startswith("[Term]") or re.search(r"^is_obsolete: true", stanza, re.MULTILINE):
            continue
        values = lambda pattern, stanza=stanza: re.findall(pattern, stanza, re.MULTILINE)
        plain = lambda text: re.sub(r"\\(.)", lambda escape: " " if escape[1] in "nt" else escape[1], text)
        if len(ids := values(r"^id: (\S+)")) != 1:
            raise ValueError(f"a [Term] of the ontology has {len(ids)} lines 'id: ' instead of one: {stanza[:80]!r}")
        synonyms = [(plain(text), scope) for text, scope in values(rf"^synonym: {QUOTED}(?: (\w+))?")]
        yield Concept(
            id=ids[0],
            name=(values(r"^name: (.+)") or [""])[0],
            synonyms=tuple(text for text, _ in synonyms),
            exact=tuple(text for text, scope in synonyms if scope == "EXACT"),
            definition=plain((values(rf"^def: {QUOTED}") or [""])[0]),
            parents=tuple(values(r"^is_a: (\S+)")),
            former_ids=tuple(values(r"^alt_id: (\S+)")),
        )


def obo(file: Path) -> Hierarchy:
    """Read a hierarchy of concepts from a file in the ontology format OBO, whose lines `is_a` name the parents.

    `senses` lists a concept under its name, its synonyms and its former ids. If a text is the name of one concept and a
    synonym of another, the concept with that name comes first in the list.

    Raises:
        ValueError: a concept has no id, or several, or the id of another one.
    """
    parents: dict[str, Sequence[str]] = {}
    names: dict[str, list[str]] = {}
    synonyms: dict[str, list[str]] = {}
    for concept in read_concepts(file.read_text("utf-8")):
        if concept.id in parents:
            raise ValueError(f"the id {concept.id} stands there twice")
        parents[concept.id] = list(concept.parents)
        names.setdefault(normalised(concept.name), []).append(concept.id)
        for name in (*concept.synonyms, *concept.former_ids):
            synonyms.setdefault(normalised(name), []).append(concept.id)
    every = (names.keys() | synonyms.keys()) - {""}  # some concepts have no name
    return Hierarchy(parents, {name: [*names.get(name, []), *synonyms.get(name, [])] for name in every})


def icd(file: Path) -> Hierarchy:
    """Read the hierarchy of chapters, sections and diagnoses from the tabular list of ICD-10-CM, an XML file.

    Raises:
        ValueError: the file is not XML.
    """
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{str(file)!r} is not XML ({error})") from None
    parents: dict[str, list[str]] = {root.tag: []}
    senses: dict[str, list[str]] = {}

    def descend(element: ElementTree.Element, parent: str) -> None:
        for child in element:
            if child.tag not in ("chapter", "section", "diag"):
                continue
            code = child.get("id", "") or child.findtext("name", "")
            concept = f"chapter {code}" if child.tag == "chapter" else code
            if concept != parent:  # a section with a single category has the code of that category
                name = re.sub(r" \([^()]*\)$", "", child.findtext("desc", ""))  # without the range of codes
                parents[concept] = [parent]
                senses.setdefault(normalised(name), []).append(concept)
            descend(child, concept)

    descend(root, root.tag)
    return Hierarchy(parents, senses)


def normalised(name: str) -> str:
    """Return a name as `Hierarchy.senses` has it: in lower case, with underscores for spaces."""
    return name.strip().lower().replace(" ", "_")
