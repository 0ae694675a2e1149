"""What is to be scored of a VCF: every REF is compared with the genome, and every ALT gets a status or a number."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.variants import (
    Variant,
    VcfReader,
    allele_status,
    core_of,
    reference_fault,
)
from dna_mamba.data.vcf_blocks import SLOW
from dna_mamba.data.vocabulary import letters_of_store, tokens_of
from dna_mamba.errors import InputError
from dna_mamba.pipelines.configs.score import ScoreConfig, format_of
from dna_mamba.reading.forks import Allele

MAX_ALLELE_BASES = 1 << 20
WRONG_BUILD_SHARE = 0.05
"""With more records than this whose REF differs, another assembly is the likely reason."""
STATUSES = (
    "scored", "star", "symbolic", "breakend", "no_alt", "ambiguous", "too_long", "ref_mismatch", "no_contig",
)  # fmt: skip
SCORED = 0
OF_KIND = np.array([0, *(STATUSES.index(name) for name in ("symbolic", "star", "no_alt"))], np.uint8)
"""Status of the kinds of records that are not taken apart."""


@dataclass
class OfContig:
    """Alleles of a contig that are to be scored, and their number among all of those, in the order of the file."""

    starts: array = field(default_factory=lambda: array("q"))
    ref_bases: array = field(default_factory=lambda: array("i"))
    ends: array = field(default_factory=lambda: array("q"))
    """Of each allele's tokens in `tokens`."""
    tokens: bytearray = field(default_factory=bytearray)
    numbers: array = field(default_factory=lambda: array("q"))

    def alleles(self) -> list[Allele]:
        """Give them as the scoring takes them."""
        begins = [0, *self.ends[:-1]]
        return [
            Allele(start, bases, np.frombuffer(self.tokens[a:b], np.uint8))
            for start, bases, a, b in zip(self.starts, self.ref_bases, begins, self.ends, strict=True)
        ]


class Survey:
    """What a first reading of a VCF finds: a status an allele, and what is to be scored."""

    def __init__(self, config: ScoreConfig, genome: GenomeStore):
        self.config, self.genome = config, genome
        self.statuses = bytearray()
        self.by_contig: dict[str, OfContig] = {}
        self.num_records = self.num_moved = self.num_scored = 0
        self.num_mismatched = self.num_without_contig = self.num_ambiguous = 0
        self.first_fault: tuple[Variant, str] | None = None

    def read_file(self, reader: VcfReader) -> None:
        """Take in all records of a file; see `read`."""
        is_vcf = format_of(self.config.out) in (".vcf", ".vcf.gz")
        foreign = self.config.foreign(reader.header) if is_vcf else frozenset()
        for block in reader.blocks():
            before = 0
            if any(name.encode() in block.text for name in foreign):
                for number, (start, end) in enumerate(block.info.tolist()):
                    info = block.text[start:end].decode("utf-8", "surrogateescape")
                    self.config.check_info(info, foreign, block.first_line + number)
            for number in np.flatnonzero(block.kinds == SLOW).tolist():
                self.statuses += OF_KIND[block.kinds[before:number]].tobytes()
                before = number + 1
                self._take(reader.record(block, number))
            self.statuses += OF_KIND[block.kinds[before:]].tobytes()
            self.num_records += len(block)
        self._judge()

    def read(self, records: Iterable[Variant]) -> None:
        """Take in all records.

        Raises:
            InputError: A REF is not in the genome, unless mismatches are passed over; or no record is on one of its contigs.
        """
        for record in records:
            self.num_records += 1
            self._take(record)
        self._judge()

    def _judge(self) -> None:
        if self.first_fault is None:
            return
        if self.config.skip_mismatches:
            passed = self.num_mismatched + self.num_without_contig
            if not self.num_scored and passed and not self.num_ambiguous:
                what = "is on a contig" if self.num_without_contig == passed else "fits the bases"
                raise InputError(
                    f"{self.config.variants}: of {passed:,} records with bases to score none {what} of {self.config.genome}; "
                    f"line {self.first_fault[0].line}: {self.first_fault[1]}"
                )
            return
        variant, fault = self.first_fault
        number = self.num_mismatched + self.num_without_contig
        share = number / self.num_records
        build = " (is it another assembly?)" if share > WRONG_BUILD_SHARE else ""
        raise InputError(
            f"{self.config.variants}, line {variant.line} ({variant.contig}:{variant.start + 1}): {fault}; {number:,} of "
            f"{self.num_records:,} records ({share:.1%}) do not fit {self.config.genome}{build}; --skip-mismatches passes over "
            f"them"
        )

    def _take(self, record: Variant) -> None:
        statuses = [allele_status(alt) for alt in record.alts or (".",)]
        if None not in statuses:
            self.statuses.extend(STATUSES.index(status) for status in statuses if status is not None)
            return
        whole, letters = self._of_reference(record)
        moved = False
        for status, alt in zip(statuses, record.alts, strict=True):
            if status is None:
                status = whole or ("too_long" if len(alt) > MAX_ALLELE_BASES else None)
            if status is None:
                moved |= self._note(record, letters, alt)
            self.statuses.append(SCORED if status is None else STATUSES.index(status))
        self.num_moved += moved

    def _of_reference(self, record: Variant) -> tuple[str | None, str]:
        """Give what REF makes of all alleles of a record, if anything, and the genome's letters under it."""
        fault = reference_fault(self.genome, record)
        if fault is not None:
            self.first_fault = self.first_fault or (record, fault)
            if record.contig in self.genome.contigs:
                self.num_mismatched += 1
                return "ref_mismatch", ""
            self.num_without_contig += 1
            return "no_contig", ""
        letters = letters_of_store(self.genome.stored(record.contig, record.start, record.start + len(record.ref)))
        # REF adds nothing where the genome, or REF itself, says no base: nothing to compare with
        if "N" in letters or "N" in record.ref.upper():
            self.num_ambiguous += 1
            return "ambiguous", letters
        return None, letters

    def _note(self, record: Variant, letters: str, alt: str) -> bool:
        """Note an allele that is to be scored; say whether it is written otherwise than bcftools norm would."""
        core = core_of(self.genome, record.contig, record.start, letters, alt)
        of_contig = self.by_contig.setdefault(record.contig, OfContig())
        of_contig.starts.append(core.start)
        of_contig.ref_bases.append(core.ref_bases)
        of_contig.tokens += tokens_of(core.alt).tobytes()
        of_contig.ends.append(len(of_contig.tokens))
        of_contig.numbers.append(self.num_scored)
        self.num_scored += 1
        if core.moved or len(record.alts) > 1:  # alleles of one record share a REF, longer than some of them need
            return core.moved
        # an insertion or deletion is written with the base before it, but for one before the first base of all
        anchor = int(bool(core.ref_bases) != bool(core.alt) and core.start > 0)
        usual = (core.start - anchor, core.ref_bases + anchor)
        return (record.start, len(letters)) != usual and letters != alt.upper() and core.start > 0
