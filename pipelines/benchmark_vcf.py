"""How fast score reads and writes VCF when nothing in it is scored, and in how much memory, beside bcftools."""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dna_mamba.errors import InputError
from dna_mamba.pipelines.benchmark import BenchResult, BenchRow, OnRow, Rows, make_result
from dna_mamba.pipelines.configs.bench import VcfBenchConfig

OURS = """
import json, re, sys, time
from pathlib import Path
from dna_mamba.pipelines.score_variants import ScoreConfig, run
variants, genome, out = sys.argv[1:]
config = ScoreConfig(model=Path("human-4x64"), variants=Path(variants), genome=genome, out=Path(out), device="cpu")
started = time.perf_counter()
result = run(config)
seconds = time.perf_counter() - started
memory = int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024
print(json.dumps([seconds, memory, result.num_records]))
"""
THEIRS = """
import json, re, sys, time
import pysam.bcftools
started = time.perf_counter()
pysam.bcftools.view(*sys.argv[1:], catch_stdout=False)
seconds = time.perf_counter() - started
memory = int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024
print(json.dumps([seconds, memory, 0]))
"""


def _lines(records: int, samples: int) -> Iterator[str]:
    """Give a gVCF of blocks: records that say something else than bases."""
    generator = random.Random(0)
    yield "##fileformat=VCFv4.2\n##contig=<ID=c1,length=2000000>\n"
    yield '##INFO=<ID=END,Number=1,Type=Integer,Description="x">\n##ALT=<ID=NON_REF,Description="x">\n'
    yield '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n##FORMAT=<ID=DP,Number=1,Type=Integer,Description="x">\n'
    yield "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t" + "\t".join(f"s{i}" for i in range(samples)) + "\n"
    many = ["\t".join(f"0/0:{generator.randint(10, 60)}" for _ in range(samples)) for _ in range(64)]
    for number in range(records):
        place = number + 1
        yield f"c1\t{place}\t.\t{'ACGT'[number % 4]}\t<NON_REF>\t.\t.\tEND={place}\tGT:DP\t{many[number % 64]}\n"


def _run(code: str, *words: str) -> tuple[float, float, int]:
    """Run a program in a process of its own, on one thread; give seconds without its start, and its peak memory in MiB."""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=alone)  # noqa: S603
    if done.returncode:
        raise InputError(f"a part of the benchmark failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    seconds, memory, records = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory, records


def run(
    config: VcfBenchConfig, *, on_phase: Callable[[str], None] | None = None, on_row: OnRow | None = None
) -> BenchResult:
    """Read and write files of several sizes with score and with bcftools view (of pysam, where that is installed)."""
    say = on_phase or (lambda words: None)
    rows = Rows(on_row)
    try:
        import pysam  # noqa: F401

        others = True
    except ImportError:
        say("bcftools is left out: pip install pysam brings it")
        others = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "g.fa").write_text(">c1\n" + "ACGT" * (max(config.records) // 4 + 1) + "\n", encoding="utf-8")
        from Bio.bgzf import BgzfWriter

        for records in config.records:
            for ending in (".vcf", ".vcf.gz"):
                source = folder / f"x{ending}"
                say(f"{records:,} records of {config.samples:,} samples, {ending}")
                with BgzfWriter(str(source), "wb") if ending == ".vcf.gz" else open(source, "wb") as file:
                    for line in _lines(records, config.samples):
                        file.write(line.encode())
                _run(OURS, str(source), str(folder / "g.fa"), str(folder / f"warm{ending}"))  # packs and compiles
                seconds, memory, found = _run(OURS, str(source), str(folder / "g.fa"), str(folder / f"out{ending}"))
                assert found == records
                row = BenchRow(f"{records:,} records, {ending}", {"ours s": seconds, "ours MiB": memory})
                if others:
                    kind = "v" if ending == ".vcf" else "z"
                    theirs, their_memory, _ = _run(THEIRS, "-O", kind, "-o", str(folder / f"bcf{ending}"), str(source))
                    row.cells |= {
                        "bcftools s": theirs,
                        "times bcftools": seconds / theirs,
                        "bcftools MiB": their_memory,
                    }
                rows.append(row)
    return make_result(f"VCF read and written by score, {config.samples:,} samples, nothing scored", "cpu", rows)
