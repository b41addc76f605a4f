"""Tests of the builder of phenotypes: concepts are read, and no text of a test phenotype is in another split."""

import xml.etree.ElementTree as ElementTree

from jaxdistill.data.builders import medical

STANZA = """[Term]
id: HP:{number:07d}
name: Sign {number}
def: "A \\"quoted\\" definition of {number}." [PMID:1]
synonym: "Exact {number}" EXACT layperson []
synonym: "Wider {number}" BROAD []
is_a: HP:0000001"""
OBSOLETE = """[Term]
id: HP:9999999
name: Gone
synonym: "Away" EXACT []
is_obsolete: true"""
HEADING = "format-version: 1.2"
CONTENT = "\n\n".join([HEADING, *(STANZA.format(number=n) for n in range(40)), OBSOLETE, "[Typedef]\nid: part_of"])


def test_concepts_are_read_with_their_exact_synonyms():
    found = list(medical.read_concepts(CONTENT))
    assert len(found) == 40 and found[3] == medical.Concept(
        id="HP:0000003",
        name="Sign 3",
        synonyms=("Exact 3", "Wider 3"),
        exact=("Exact 3",),
        definition='A "quoted" definition of 3.',
        parents=("HP:0000001",),
    )


def test_concepts_are_told_apart_without_empty_lines_between_them():
    lines = CONTENT.replace("\n\n", "\n")
    assert list(medical.read_concepts(lines)) == list(medical.read_concepts(CONTENT))
    (concept,) = medical.read_concepts('[Term]\nid: X:1\ndef: "One.\\nTwo \\"three\\"." []\n')
    assert concept.definition == 'One. Two "three".' and concept.name == ""


def test_a_phenotype_is_in_one_split_with_all_its_texts():
    splits = medical._splits(medical.read_concepts(CONTENT))
    names = {split: {each["name"] for each in records} for split, records in splits.items()}
    assert not names["pairs"] & names["test"] and len(names["pairs"] | names["test"]) == 40
    assert 10 <= len(names["test"]) <= 30
    assert all(each["text"] == each["name"].replace("Sign", "Exact") for each in (*splits["pairs"], *splits["test"]))
    numbers = {name.removeprefix("Sign ") for name in names["pairs"]}
    assert len(splits["texts"]) == 4 * len(numbers) and all(each["text"] == each["name"] for each in splits["texts"])
    assert {word.strip(".") for each in splits["texts"] for word in each["text"].split()} & {*map(str, range(40))} == (
        numbers
    )


def test_the_diagnoses_of_one_category_are_in_one_split():
    diagnosis = lambda code, inner="": f"<diag><name>{code}</name><desc>It is {code}</desc>{inner}</diag>"
    codes = [f"{letter}{number:02d}" for letter in "AB" for number in range(40)]
    chapters = [
        f"<chapter><name>{number}</name>"
        + "".join(diagnosis(code, diagnosis(f"{code}.1") + diagnosis(f"{code}.22")) for code in codes[start::2])
        + "</chapter>"
        for number, start in ((1, 0), (2, 1))
    ]
    splits = medical._splits_of_diagnoses(ElementTree.fromstring(f"<list>{''.join(chapters)}</list>"))
    categories = {split: [each["text"].split()[-1][:3] for each in records] for split, records in splits.items()}
    assert not {*categories["train"]} & {*categories["test"]} and len(categories["test"]) >= 20
    assert sorted(categories["train"] + categories["test"]) == sorted(codes * 3)
    labels = {each["text"]: each["label"] for records in splits.values() for each in records}
    assert labels["It is A00.1"] == "chapter 1" and labels["It is A01"] == "chapter 2"


def test_a_text_of_a_test_phenotype_is_in_no_other_split():
    one, other = (f"HP:{number:07d}" for number in (_first(0), _first(1)))
    known = medical.Concept(one, "known", ("shared", "own"), ("shared", "own"))
    held_out = medical.Concept(other, "unseen", ("shared",), ("shared",))
    splits = medical._splits([known, held_out])
    assert splits["test"] == [{"text": "shared", "name": "unseen"}]
    named = medical.Concept(one, "shared", ("own",), ("own",))
    assert medical._splits([named, held_out])["pairs"] == []
    assert splits["pairs"] == [{"text": "own", "name": "known"}]
    assert {each["text"] for each in splits["texts"]} == {"known", "own"}


def _first(held_out: int) -> int:
    """Return the first number whose phenotype is in the test split (1), or is not (0)."""
    is_known = lambda number: medical.text_hash(f"HP:{number:07d}") % medical.ONE_IN != 0
    return next(number for number in range(100) if is_known(number) != bool(held_out))


def test_a_synonym_that_differs_in_case_alone_is_no_pair():
    concept = medical.Concept("HP:0000001", "Short Nose", exact=("Short nose", "Small nose"))
    assert [each["text"] for each in medical._pairs([concept])] == ["Small nose"]
