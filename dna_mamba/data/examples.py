"""Small real data sets that ship in the package."""

import csv
import gzip
from dataclasses import dataclass
from importlib import resources
from pathlib import Path


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


def giab_variants() -> Path:
    """Give a VCF with the 2,968 records of HG002 at chr20:8,000,001-10,000,000, which is the genome 'demo'.

    Source: Genome in a Bottle v4.2.1, GRCh38.
    """
    return Path(str(resources.files("dna_mamba") / "assets" / "hg002.chr20.vcf.gz"))
