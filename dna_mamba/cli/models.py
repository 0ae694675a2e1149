"""Models of other programs, simulated genomes, and what this machine can do."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dna_mamba.cli import console, options
from dna_mamba.cli.apps import app, simulate_app
from dna_mamba.errors import StoppedError


@app.command(name="import")
def import_(
    checkpoint: Path,
    /,
    *,
    out: options.Out,
    token_ids: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (),
    json: options.Json = False,
) -> None:
    """Read a Mamba checkpoint of state-spaces/mamba or transformers into a model directory, and compare its logits.

    Parameters
    ----------
    checkpoint
        Local directory with config.json and model.safetensors or pytorch_model.bin (nothing in it is executed).
    out
        New model directory.
    token_ids
        Its ids of A, C, G, T and N, where its vocabulary is not ours (7 8 9 10 11); other tokens are left out.
    """
    from dna_mamba.pipelines.configs import models as configs

    config = configs.ImportConfig(checkpoint=checkpoint, out=out, token_ids=token_ids or None)
    from dna_mamba.pipelines import checkpoints as pipeline

    _print_checkpoint(pipeline.import_model(config), "from", json)


@app.command
def export(
    model: options.Model,
    /,
    *,
    out: options.Out,
    format: str = "transformers",
    json: options.Json = False,
) -> None:
    """Write a model as transformers (MambaForCausalLM) or state-spaces/mamba (MambaLMHeadModel) reads it.

    Parameters
    ----------
    out
        New directory.
    format
        transformers or mamba_ssm.
    """
    from dna_mamba.pipelines.configs import models as configs

    config = configs.ExportConfig(model=model, out=out, format=format)
    from dna_mamba.pipelines import checkpoints as pipeline

    _print_checkpoint(pipeline.export_model(config), "for", json)


def _print_checkpoint(result: Any, word: str, json: bool) -> None:
    if json:
        console.print_json({"out": str(result.out), "format": result.format, "parameters": result.num_parameters,
                     "largest_difference_of_logits": result.largest_difference,
                     "against_transformers": result.against_transformers, "remarks": list(result.remarks)})  # fmt: skip
        return
    print(f"{result.num_parameters:,} parameters {word} {result.format} -> {result.out}")
    print(
        f"largest difference of a logit from the equations in float64, over the largest logit: {result.largest_difference:.2g}"
    )
    if result.against_transformers is not None:
        print(
            f"largest difference of a logit from transformers' own model, over the largest logit, on 512 bases: "
            f"{result.against_transformers:.2g}"
        )
    for remark in result.remarks:
        console.warn(remark)


@simulate_app.command
def apes(
    *,
    genome: str = "demo",
    out: Path,
    preset: str = "benchmark",
    diagnostics: Literal["on", "off"] = "on",
    contig_bases: int | None = None,
    insertions_per_mb: float | None = None,
    inner_insertions_per_mb: float | None = None,
    diagnostic_share: float | None = None,
    seed: int = 0,
    json: options.Json = False,
) -> None:
    """Let human sequence evolve along the tree of the great apes into SIMULATED genomes of all five, with the truth beside.

    Parameters
    ----------
    genome
        FASTA or genome store of human sequence; 'demo' is the one in the package.
    out
        New directory for a FASTA a species, manifest.yaml, events.tsv (every planted insertion) and truth.json.
    preset
        benchmark (an oracle reaches 63 % at 4,096 bases) or realistic (2.4 insertions a megabase).
    diagnostics
        off plants nothing and lets all lineages mutate alike: no classifier may beat chance.
    contig_bases
        Length of the contigs that the sequence is cut into; each is a locus of its own in splits.
    insertions_per_mb
        New mobile elements on each branch that ends today.
    inner_insertions_per_mb
        The same on inner branches.
    diagnostic_share
        Of an element's positions, those that are a lineage's own.
    seed
        The same seed gives the same genomes.
    """
    from dna_mamba.pipelines import simulate as pipeline

    given = {
        "contig_bases": contig_bases,
        "insertions_per_mb": insertions_per_mb,
        "inner_insertions_per_mb": inner_insertions_per_mb,
        "diagnostic_share": diagnostic_share,
    }
    values = pipeline.preset(preset) | {name: value for name, value in given.items() if value is not None}
    config = pipeline.SimulateConfig(genome=genome, diagnostics=diagnostics == "on", seed=seed, **values)

    update, progress = console.packing()
    with progress:
        result = pipeline.run(config, out, on_progress=update, say=console.say, warn=console.warn)
    if json:
        console.print_json({"out": str(result.out), "bases": result.bases_of, "insertions": result.num_events_of,
                     "substitutions": result.substitutions_of, "divergence_from_human": result.divergence_of})  # fmt: skip
    else:
        for name, bases in result.bases_of.items():
            planted = sum(result.num_events_of[branch] for branch in pipeline.path_of(name))
            print(f"SIMULATED {name}: {len(result.contigs)} contigs, {bases:,} bases, {planted:,} planted insertions")
        apart = ", ".join(f"{name} {share:.2%}" for name, share in result.divergence_of.items())
        print(f"differ from human at: {apart} of the ancestor's bases that both have kept")
        print(f"manifest: {result.out / 'manifest.yaml'}")


@app.command
def doctor(*, json: options.Json = False) -> None:
    """Check what this machine can do, run the kernels against their reference, and say what is missing."""
    try:
        from dna_mamba.pipelines import doctor as pipeline
    except ImportError as error:
        raise StoppedError(
            f"{error.name} cannot be imported ({error}); install it: pip install {error.name}"
        ) from error

    result = pipeline.run(pipeline.DoctorConfig())
    if json:
        console.print_json([{"check": c.name, "ok": c.ok, "found": c.found, "advice": c.advice} for c in result.checks])
    else:
        for check in result.checks:
            advice = f"; {check.advice}" if check.advice else ""
            print(f"{'ok  ' if check.ok else 'MEND'}  {check.name}: {check.found}{advice}")
    if not result.ok:
        raise StoppedError("something needs mending; see the lines marked MEND")
