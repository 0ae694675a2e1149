"""Make labelled sets of real primate sequence for `dna-mamba finetune species`, as docs/results.md uses them.

    python docs/prepare_primates.py encode encode_primates.fa.gz OUT
    python docs/prepare_primates.py coding primates9_cds_331genes_aligned.fa.gz OUT
    python docs/prepare_primates.py mitochondria great_ape_mtdna.fa.gz OUT

encode: regions ENm001 and ENm002 of human, chimpanzee, baboon and macaque (records SPECIES.REGION.NUMBER). The last part of
ENm001 validates and ENm002 tests. coding: codon alignments of four great apes (records SPECIES.GENE); gaps and N are taken
out, every sixth gene tests and the one after it validates. mitochondria: one genome of each great ape, begun at the same
place and cut into three parts; enough to see that everything runs, not to measure.
"""

import gzip
import hashlib
import sys
from pathlib import Path

import yaml
from Bio import SeqIO

APES = {
    "Homo_sapiens": "human",
    "Pan_troglodytes": "chimpanzee",
    "Pan_paniscus": "bonobo",
    "Gorilla_gorilla_gorilla": "gorilla",
    "Gorilla_gorilla": "gorilla",
    "Pongo_abelii": "orangutan",
}
MITOCHONDRIA = {
    "NC_012920": "human",
    "NC_001643": "chimpanzee",
    "NC_001644": "bonobo",
    "NC_011120": "gorilla",
    "NC_002083": "orangutan",
}
VALIDATION_SHARE = 0.15

Sequences = dict[str, list[tuple[str, str, str]]]  # label -> (contig, locus, letters)


def encode(records: list) -> tuple[Sequences, list[str], list[str]]:
    """Two regions, one to train and validate on, one to test on."""
    found: Sequences = {}
    for record in records:
        label, region, number = record.id.split(".")
        label = {"chimp": "chimpanzee"}.get(label, label)
        found.setdefault(label, []).append((f"{region}.{number}", region, str(record.seq)))
    for label, contigs in found.items():
        total = sum(len(letters) for _, region, letters in contigs if region == "ENm001")
        wanted, cut = round(VALIDATION_SHARE * total), []
        for name, region, letters in reversed(contigs):  # from the far end of ENm001
            if region == "ENm001" and wanted > 0:
                size = min(len(letters), wanted)
                wanted -= size
                if size < len(letters):
                    cut.append((name, region, letters[:-size]))
                cut.append((f"{name}.valid", "ENm001.valid", letters[-size:]))
            else:
                cut.append((name, region, letters))
        found[label] = cut
    return found, ["ENm001.valid"], ["ENm002"]


def coding(records: list) -> tuple[Sequences, list[str], list[str]]:
    """Genes without gaps and N, split by gene."""
    found: Sequences = {}
    genes = set()
    for record in records:
        species, gene = record.id.rsplit(".", 1)
        if species in APES:
            letters = str(record.seq).upper().replace("-", "").replace("N", "")
            found.setdefault(APES[species], []).append((gene, gene, letters))
            genes.add(gene)
    order = sorted(genes, key=lambda gene: hashlib.sha256(gene.encode()).hexdigest())
    return found, order[1::6], order[::6]


def mitochondria(records: list) -> tuple[Sequences, list[str], list[str]]:
    """Three parts of each molecule, begun at tRNA-Phe."""
    found: Sequences = {}
    for record in records:
        accession = record.id.split("|")[0]
        if accession in MITOCHONDRIA:
            letters = str(record.seq).upper()
            start = letters.find("GTTTATG")  # the first bases of tRNA-Phe
            letters = letters[start:] + letters[:start]
            parts = [(0, 0.6, "first"), (0.6, 0.8, "second"), (0.8, 1.0, "third")]
            found[MITOCHONDRIA[accession]] = [
                (name, name, letters[round(a * len(letters)) : round(b * len(letters))]) for a, b, name in parts
            ]
    return found, ["second"], ["third"]


def main(kind: str, source: str, out: str) -> None:
    """Write a FASTA a class and manifest.yaml into a new folder."""
    with gzip.open(source, "rt") as file:
        records = list(SeqIO.parse(file, "fasta"))
    found, valid, test = {"encode": encode, "coding": coding, "mitochondria": mitochondria}[kind](records)
    folder = Path(out)
    folder.mkdir(parents=True)
    classes = []
    for label, contigs in sorted(found.items()):
        text = "".join(f">{name}\n{letters}\n" for name, _, letters in contigs if letters)
        (folder / f"{label}.fa").write_text(text, encoding="utf-8")
        rows = [{"name": name, "homologue": locus, "verified": True} for name, locus, letters in contigs if letters]
        assembly = {"name": f"{kind}-{label}", "fasta": f"{label}.fa", "contigs": rows}
        classes.append({"label": label, "assemblies": [assembly]})
    manifest = {"format_version": 1, "name": kind, "valid": valid, "test": test, "classes": classes}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
