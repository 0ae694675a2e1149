"""Options that several commands share: one definition and one help text each."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dna_mamba.model.config import LETTERS

Many = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="", show_default=False)]
Words = Many
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Out = Annotated[Path, Parameter(alias="-o")]
OutIfGiven = Annotated[Path | None, Parameter(alias="-o")]


def _flag(help: str) -> Parameter:
    return Parameter(negative="", show_default=False, help=help)


_DEVICE = Parameter(help="auto, cpu or cuda.")
_PRECISION = "auto, fp32 or bf16"

# of every command
Json = Annotated[bool, _flag("Print the results as JSON.")]
Rna = Annotated[bool, _flag("Read U of files as T; otherwise U is N.")]
Device = Annotated[str, _DEVICE]
DeviceIfGiven = Annotated[str | None, _DEVICE]

# of those that read a model
Model = Annotated[
    Path, Parameter(help="Run directory, the model directory in it, or human-4x64, which ships in the package.")
]
ReadingDevice = Annotated[str, Parameter(help="auto, cpu or cuda; always float32.")]
Genome = Annotated[str, Parameter(help="FASTA or genome store; 'demo' is the one in the package.")]
GenomeOfBed = Annotated[str | None, Parameter(help="Genome that a BED refers to.")]
Strands = Annotated[Literal["forward", "both"], Parameter(help="both averages with the reverse complement.")]
Right = Annotated[int, Parameter(help="Bases of right flank that are scored with each allele.")]

# of those that train
GenomeToTrain = Annotated[
    str | None,
    Parameter(help="FASTA (plain, gzip, bgzip), GenBank file or genome store; 'demo' is the genome in the package."),
]
SeqLen = Annotated[int | None, Parameter(help="Bases of a training window.")]
Steps = Annotated[int | None, Parameter(help="Optimizer steps; without it the preset's budget of bases decides.")]
Size = Annotated[
    str | None,
    Parameter(help="Blocks x width, such as 4x64, 12x128 (1.4 million parameters) or 16x256 (7 million)."),
]
Pattern = Annotated[
    str | None,
    Parameter(
        help=f"Layers instead of a number of them, one letter each, quoted: "
        f"{', '.join(f'{letter} is {one.name}' for letter, one in LETTERS.items())}, A another word for *. Parts may be "
        f"repeated, as in '(SS-)x4*'."
    ),
]
PatternStyle = Annotated[
    str | None, Parameter(help="Whose letters: ours, or megatron, where M is Mamba-2 (by default ours).")
]
Preset = Annotated[
    str | None,
    Parameter(
        help="Values to start from: demo, small, mamba or mamba-long; or what mamba is compared with, whose size --model gives "
        "too: mamba2, transformer++, mamba2-hybrid, mamba-hybrid."
    ),
]
Split = Annotated[str | None, Parameter(help="BED with CONTIG START END SPLIT (train, valid, test).")]
Valid = Annotated[
    tuple[str, ...],
    Parameter(
        consume_multiple=True, negative="", show_default=False,
        help="Regions (1-based, as in chr20:8000001-9000000) or contigs held out for validation.",
    ),
]  # fmt: skip
Test = Annotated[
    tuple[str, ...],
    Parameter(
        consume_multiple=True, negative="", show_default=False, help="Regions or contigs held out for the final table.",
    ),
]  # fmt: skip
LengthWarmup = Annotated[str | None, Parameter(help="mamba (double from 1,024), hyenadna (double from 64) or none.")]
PieceLen = Annotated[
    str | None,
    Parameter(
        help="Bases computed at once, or auto (from the GPU's free memory). Longer windows go in pieces, exactly."
    ),
]
NumWorkers = Annotated[int | None, Parameter(help="Processes that read windows; by default 2 on a GPU and 0 on a CPU.")]
PrecisionIfGiven = Annotated[str | None, Parameter(help=f"{_PRECISION}; auto is bf16 on a GPU.")]
SeedOfRun = Annotated[int | None, Parameter(help="The same seed gives the same run.")]
Settings = Annotated[Path | None, Parameter(help="YAML file of settings; flags win over it.")]
Set = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", consume_multiple=True, negative="", show_default=False,
        help="Any other setting, as section.key=value.",
    ),
]  # fmt: skip
Resume = Annotated[bool, _flag("Go on with the run in --out; its settings are taken from there.")]
Overwrite = Annotated[bool, _flag("Replace the run in --out.")]
PrintConfig = Annotated[
    bool, _flag("Print the resolved settings as YAML, all that --set and --config can change, and stop.")
]
DryRun = Annotated[bool, _flag("Check everything, say what would run, and stop.")]

# of benchmarks
Precision = Annotated[str, Parameter(help=f"{_PRECISION}; auto is bf16 on a GPU.")]
Shape = Annotated[
    tuple[str, ...],
    Parameter(
        consume_multiple=True, negative="", show_default=False,
        help="BATCH,CHANNELS,LENGTH, one or more; without it a list of typical ones.",
    ),
]  # fmt: skip
States = Annotated[int, Parameter(help="States a channel.")]
Repeats = Annotated[int, Parameter(help="Runs of each; the median is printed.")]
Alone = Annotated[bool, _flag("Leave out what it is compared with.")]
