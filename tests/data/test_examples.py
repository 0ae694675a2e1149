"""The data in the package is what its description says."""

from collections import Counter

from dna_mamba.data.examples import giab_variants, regulatory_elements
from dna_mamba.data.intervals import Interval
from dna_mamba.data.selection import load_genome
from dna_mamba.data.variants import read_vcf, reference_fault


def test_regulatory_elements_hold_the_bases_of_the_demo_genome():
    elements = regulatory_elements()
    assert Counter(e.label for e in elements) == {"promoter": 628, "enhancer": 549, "ocr": 496}
    assert all(len(e.sequence) == e.end - e.start and set(e.sequence) <= set("ACGT") for e in elements)
    genome = load_genome("demo")
    inside = [e for e in elements if e.contig == "chr20" and e.start >= 8_000_000]
    assert len(inside) > 100
    assert all(genome.fetch(Interval(e.contig, e.start, e.end)) == e.sequence for e in inside)


def test_every_packaged_variant_fits_the_demo_genome():
    file = read_vcf(giab_variants())
    genome = load_genome("demo")
    assert len(file.variants) == 2968 and not any(reference_fault(genome, variant) for variant in file.variants)
