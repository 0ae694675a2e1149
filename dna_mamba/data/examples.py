"""Small real data sets that ship in the package."""

import csv
import gzip
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class RegulatoryElement:
    """An interval of the human genome (hg38) with its class and its bases; 0-based, end excluded, forward strand."""

    contig: str
    start: int
    end: int
    label: str
    """promoter, enhancer or ocr (open chromatin)."""
    split: str
    """train or test, as published."""
    sequence: str


def regulatory_elements() -> list[RegulatoryElement]:
    """Give the 1,673 intervals of human_ensembl_regulatory that lie in three pieces of hg38 without N, ordered by place.

    Source: Gresova et al. 2023, Genomic Benchmarks; intervals from Ensembl's Regulatory Build.
    """
    packed = (resources.files("dna_mamba") / "assets" / "regulatory.hg38.tsv.gz").read_bytes()
    rows = csv.DictReader(gzip.decompress(packed).decode().splitlines(), delimiter="\t")
    return [
        RegulatoryElement(r["contig"], int(r["start"]), int(r["end"]), r["label"], r["split"], r["sequence"])
        for r in rows
    ]
