"""The commands' names and groups; each file of this folder adds its own."""

import platform
from importlib import metadata

from cyclopts import App


def version() -> str:
    """Give the version, and what it computes with."""
    own = f"dna-mamba {metadata.version('dna-mamba')}"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"{own}\ntorch cannot be loaded: {' '.join(str(error).split())}; dna-mamba doctor says more"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    rows = {
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "CUDA": torch.version.cuda or "none (a CPU build of torch)",
        "GPU": ", ".join(gpus) or "none",
    }
    return "\n".join([own, *(f"{name:7}{found}" for name, found in rows.items())])


app = App(
    name="dna-mamba",
    help="Pretrain, evaluate and use Mamba language models of DNA.",
    version_flags=["--version"],
    version=version,
    help_format="plaintext",
)
app.register_install_completion_command(
    help="Let the shell (bash, zsh or fish) complete commands and options; it writes to the shell's own files and says where."
)
genome_app = App(name="genome", help="Pack genomes into stores and look into them.")
bench_app = App(name="bench", help="Measure speed and memory on this machine.")
finetune_app = App(name="finetune", help="Teach a pretrained model, or a new one, to tell classes apart.")
simulate_app = App(name="simulate", help="Make SIMULATED genomes with a known answer.")
for group in (genome_app, bench_app, finetune_app, simulate_app):
    app.command(group)
