"""Time of variant scores: one pass with forks beside each allele scored from scratch."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dna_mamba.alphabet import ACGT, A
from dna_mamba.data.examples import giab_variants
from dna_mamba.data.intervals import Interval
from dna_mamba.data.objectives import next_base
from dna_mamba.data.selection import load_genome
from dna_mamba.data.store.genome import GenomeStore
from dna_mamba.data.variants import Variant, allele_status, core_of, read_vcf
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.device import find_device
from dna_mamba.errors import InputError
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.pipelines.benchmark import BenchResult, BenchRow, OnRow, Rows, make_result
from dna_mamba.pipelines.configs.bench import ScoreBenchConfig
from dna_mamba.pipelines.score_variants import score_records
from dna_mamba.pipelines.sequences import load_language_model


@torch.no_grad()
def _from_scratch(model: DnaMamba, rows: list[np.ndarray], context: list[int], batch: int) -> np.ndarray:
    """Score whole sequences of one length or padded on the right, in batches; sum over bases after each one's context."""
    device = model.lm_head.weight.device
    sums = []
    for first in range(0, len(rows), batch):
        some, bounds = rows[first : first + batch], context[first : first + batch]
        padded = np.full((len(some), max(map(len, some))), 11, np.uint8)
        for row, tokens in enumerate(some):
            padded[row, : len(tokens)] = tokens
        tokens_BT = torch.from_numpy(padded).to(device)
        inputs_BT, targets_BT, _ = next_base(tokens_BT)
        logits_BTV, _ = model(inputs_BT)
        log_p = logits_BTV[..., ACGT].float().log_softmax(-1)
        targets_BT = targets_BT.long()
        known_BT = targets_BT < A + 4
        values_BT = log_p.gather(-1, (targets_BT - A).clamp(0, 3)[..., None])[..., 0].double() * known_BT
        for row, bound in enumerate(bounds):
            values_BT[row, : bound - 1] = 0
        sums.append(values_BT.sum(1).cpu().numpy())
    return np.concatenate(sums)


def _choose(variants: Sequence[Variant], config: ScoreBenchConfig) -> list[Variant]:
    """Draw records that have the whole left context before them and alleles of letters alone."""
    usable = [
        v for v in variants if v.alts and all(allele_status(alt) is None for alt in v.alts) and v.start > config.left
    ]
    if not usable:
        raise InputError(f"no record has {config.left:,} bases before it and alleles of letters; choose another VCF")
    generator = np.random.default_rng(0)
    return [usable[i] for i in generator.choice(len(usable), min(config.records, len(usable)), replace=False)]


def _around(
    genome: GenomeStore, variant: Variant, alt: str, config: ScoreBenchConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give the token ids before an allele, of ALT, of REF and after it."""
    start, end = variant.start, variant.start + len(variant.ref)
    length = genome.contig(variant.contig).length
    core = core_of(genome, variant.contig, start, genome.fetch(Interval(variant.contig, start, end)), alt)
    start, end = core.start, core.start + core.ref_bases
    # moved left, it may have less before it
    first = max(0, start - config.left)
    around = genome.tokens(Interval(variant.contig, first, min(length, end + config.right)))
    before, reference, flank = np.split(around, [start - first, end - first])
    return before, tokens_of(core.alt), reference, flank


def run(
    config: ScoreBenchConfig, *, on_phase: Callable[[str], None] | None = None, on_row: OnRow | None = None
) -> BenchResult:
    """Score a sample from scratch and all records by one pass, and compare times and scores."""
    say = on_phase or (lambda words: None)
    device = find_device(config.device)
    model = load_language_model(Path(config.model), device)
    genome = load_genome(config.genome)
    file = read_vcf(Path(config.variants) if config.variants else giab_variants())
    chosen = _choose(file.variants, config)
    alleles = [(v, alt) for v in chosen for alt in v.alts]
    rows, context = [], []
    for variant, alt in alleles:
        before, *both, flank = _around(genome, variant, alt, config)
        for tokens in both:
            rows.append(np.concatenate([before, tokens, flank]))
            context.append(len(before))
    for some_left in (64, None):  # compiles
        score_records(model, genome, file.variants[:64], left=some_left, right=config.right)
    _from_scratch(model, [row[-100:] for row in rows[:2]], [2, 2], 2)
    say(f"{len(alleles)} alleles from scratch")
    started = time.perf_counter()
    scratch = _from_scratch(model, rows, context, config.batch)
    seconds_scratch = (time.perf_counter() - started) / len(alleles)
    found = Rows(on_row)
    what = f"from scratch, batches of {config.batch}"
    found.append(BenchRow(what, {"alleles": len(alleles), "ms an allele": 1e3 * seconds_scratch}))
    say("the same alleles, forked after the same context")
    ratios = score_records(model, genome, chosen, left=config.left, right=config.right)
    difference = float(np.abs(ratios - (scratch[0::2] - scratch[1::2])).max())
    found.append(
        BenchRow("largest difference of a score at one context, nats", {"alleles": len(alleles), "nats": difference})
    )
    say(f"all {len(file.variants):,} records, one pass from the first base of the contig")
    started = time.perf_counter()
    scored = len(score_records(model, genome, file.variants, left=None, right=config.right))
    seconds = time.perf_counter() - started
    found.append(
        BenchRow("one pass with forks, full left context", {"alleles": scored, "ms an allele": 1e3 * seconds / max(1, scored),
         "times faster": seconds_scratch * scored / seconds})
    )  # fmt: skip
    title = f"variant scores, {model.config.size}, left {config.left:,} and right {config.right:,}"
    return make_result(title, device, found)
