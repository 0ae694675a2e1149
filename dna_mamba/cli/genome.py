"""genome: pack genomes into stores and look into them."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dna_mamba.cli import console, options
from dna_mamba.cli.apps import genome_app
from dna_mamba.errors import StoppedError


@genome_app.command
def build(
    fasta: Annotated[tuple[Path, ...], Parameter(negative="")],
    /,
    *,
    out: Path,
    rna: options.Rna = False,
    overwrite: options.Flag = False,
) -> None:
    """Pack FASTA or GenBank files (plain, gzip or bgzip) into a genome store.

    Parameters
    ----------
    fasta
        The files; their contigs keep this order.
    out
        Directory of the store, by habit with the ending .dna.
    overwrite
        Replace a store that exists.
    """
    from dna_mamba.data.store.build import build as build_store

    update, progress = console.packing()
    with progress:
        store = build_store(fasta, out, rna=rna, overwrite=overwrite, on_progress=update, warn=console.warn)
    other = sum(c.num_other for c in store.manifest.contigs)
    print(f"{len(store.contigs)} contigs, {store.num_bases:,} bases -> {out}")
    if other:
        print(f"{other:,} letters other than A, C, G, T and N became N")


@genome_app.command
def verify(store: Path, /) -> None:
    """Compare every byte of a store with the SHA-256 in its manifest, and its source files with what they were.

    Parameters
    ----------
    store
        The genome store.
    """
    from dna_mamba.data.store.genome import GenomeStore

    opened = GenomeStore.open(store)
    opened.verify()
    opened.check_sources()
    print(f"{store}: {opened.num_bases:,} bases, SHA-256 matches")


@genome_app.command
def show(genome: Path, region: str, /, *, reverse_complement: options.Flag = False) -> None:
    """Print the bases of a region as FASTA. A plain FASTA with its .fai is read in place, anything else as a store.

    Parameters
    ----------
    genome
        Genome store, FASTA or GenBank file.
    region
        CONTIG:START-END, 1-based with both ends included, as in samtools.
    reverse_complement
        Print the other strand.
    """
    from dataclasses import replace

    from dna_mamba.data.intervals import parse_region
    from dna_mamba.data.store.cache import open_genome
    from dna_mamba.data.store.indexed import can_fetch_indexed, fetch_indexed, indexed_lengths

    strand = "-" if reverse_complement else "+"
    if can_fetch_indexed(genome):
        interval = replace(parse_region(region, indexed_lengths(genome)), strand=strand)
        bases = fetch_indexed(genome, interval)
    else:
        update, progress = console.packing()
        with progress:
            opened = open_genome(genome, verify=False, on_progress=update, warn=console.warn)
        interval = replace(opened.region(region), strand=strand)
        bases = opened.fetch(interval)
    print(f">{interval}")
    for start in range(0, len(bases), 60):
        print(bases[start : start + 60])


@genome_app.command
def audit(
    genome: Path,
    /,
    *,
    split: Path | None = None,
    valid: options.Many = (),
    test: options.Many = (),
    seq_len: int = 1024,
    window_rule: str = "mamba",
    max_n: float = 0.5,
    split_by: str = "homologue",
    genomes: Path | None = None,
    against: Path | None = None,
    tile: int = 512,
    json: options.Json = False,
) -> None:
    """Count the bases that parts of a split share, and those that training windows share with validation and test.

    Of a manifest of labelled genomes: bases of each class and part, loci in two parts, and 31-mers that parts share. With
    --against: the 31-mers of this genome that stand in another one, and the tiles made of them.

    Parameters
    ----------
    genome
        Genome store or FASTA; 'demo' is the genome in the package; or a manifest of labelled genomes (YAML, or its name).
    split
        BED with CONTIG START END SPLIT; without it and --valid the default split is audited. Of a manifest: NAME and PART.
    valid
        Regions (1-based) or contigs held out for validation. Of a manifest: human chromosomes, or contigs.
    test
        Regions or contigs held out for test. Of a manifest: human chromosomes, or contigs.
    seq_len
        Length of the training windows in bases.
    window_rule
        mamba, hyenadna or tile.
    max_n
        Largest share of N in a window.
    split_by
        Of a manifest: homologue or contig.
    genomes
        Of a manifest: folder that genome fetch filled; without it genomes/NAME.
    against
        Another genome store or FASTA, such as the one that a model was pretrained on.
    tile
        With --against: bases of a tile.
    """
    from dna_mamba.pipelines import audit as pipeline
    from dna_mamba.pipelines.manifests import SHIPPED

    if against is not None:
        console.refuse_idle(
            audit, "with --against", split=split, valid=valid, test=test, seq_len=seq_len, window_rule=window_rule, max_n=max_n,
            split_by=split_by, genomes=genomes,
        )  # fmt: skip
    elif genome.suffix in (".yaml", ".yml") or str(genome) in SHIPPED:
        console.refuse_idle(audit, "for a manifest", seq_len=seq_len, window_rule=window_rule, max_n=max_n, tile=tile)
    else:
        console.refuse_idle(audit, "without a manifest", split_by=split_by, genomes=genomes)
        console.refuse_idle(audit, "without --against", tile=tile)
    update, progress = console.packing()
    if against is not None:
        with progress:
            shared = pipeline.run_against(
                str(genome), str(against), tile_bases=tile, on_progress=update, warn=console.warn
            )
        console.print_json(shared.as_dict()) if json else print(shared.as_text())
        return
    if genome.suffix in (".yaml", ".yml") or str(genome) in SHIPPED:
        from dna_mamba.pipelines import labelled_genomes

        data = labelled_genomes.LabelledDataConfig(
            manifest=str(genome), genomes=None if genomes is None else str(genomes), split_by=split_by, valid=valid, test=test,
            split=None if split is None else str(split),
        )  # fmt: skip
        with progress:
            found = labelled_genomes.audit(
                labelled_genomes.open_labelled(data, on_progress=update, warn=console.warn), split_by
            )
        console.print_json(found.as_dict()) if json else print(found.as_text())
        if found.loci_in_two_parts:
            raise StoppedError(f"{len(found.loci_in_two_parts)} loci are in two parts")
        return
    with progress:
        result = pipeline.run(
            pipeline.AuditConfig(
                genome=str(genome), split=None if split is None else str(split), valid=valid, test=test,
                seq_len=seq_len, window_rule=window_rule, max_n=max_n,
            ),
            on_progress=update,
            warn=console.warn,
        )  # fmt: skip
    if json:
        console.print_json(result.as_dict())
    else:
        print(result.as_text())
    if result.num_shared:
        raise StoppedError(f"{result.num_shared:,} bases are shared between parts")


@genome_app.command
def fetch(manifest: Path, /, *, out: Path | None = None, list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
          json: options.Json = False) -> None:  # fmt: skip
    """Download the genomes of a manifest and pack them into stores. What was cut off goes on where it stopped.

    Checksums of the manifest are checked; where it names none, the first download is recorded and later ones must equal it.

    Parameters
    ----------
    manifest
        YAML file, or a manifest in the package: great-apes, hyenadna-5.
    out
        Directory for files, stores and fetched.json; without it genomes/NAME.
    list_
        Say what would be fetched, and stop.
    """
    from dna_mamba.pipelines import manifests as pipeline

    read = pipeline.read_genome_manifest(manifest)
    if list_:
        for one in read.classes:
            for assembly in one.assemblies:
                untried = "" if assembly.tried else "  (URL not tried)"
                print(f"{one.label}\t{assembly.name}\t{assembly.generation}\t{assembly.url or assembly.fasta}{untried}")
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console.stderr, disable=not console.stderr.is_terminal) as progress:

        def update(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        found = pipeline.fetch(read, out or Path("genomes") / read.name, on_progress=update, say=console.warn)
    if json:
        console.print_json([{"label": f.label, "assembly": f.assembly.name, "store": str(f.store), "sha256": f.sha256,
                      "homologues": f.homologue_of} for f in found])  # fmt: skip
    else:
        for f in found:
            print(
                f"{f.label}\t{f.assembly.name}\t{f.store}\t{len(f.homologue_of)} contigs with a known human homologue"
            )
