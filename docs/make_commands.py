"""Write docs/commands.md from the command line itself: python docs/make_commands.py. A test compares the two."""

import re
from pathlib import Path

HEAD = """# Commands

Every command prints this with `--help`; a default stands behind what it is for, and what must be given says so.
Results go to stdout, progress to stderr. Exit codes: 0 done, 1 our fault (with a traceback), 2 something in the input
or the machine to mend (one line says what; `DNA_MAMBA_DEBUG=1` adds the traceback), 3 stopped by a check of its own
or for want of memory, 130, 143, 129 and 138 stopped by SIGINT, SIGTERM, SIGHUP or SIGUSR1, with the run saved.
Regions such as `chr20:8000001-9000000`, `chr20:8000001-` and `chr20` are 1-based with both ends included, as in
samtools; intervals in files we write and in Python are 0-based with the end excluded. This page is made from the
command line by `docs/make_commands.py`.
"""


def text() -> str:
    """Give the page."""
    from dna_mamba.cli import app

    made = app.generate_docs(output_format="markdown", recursive=True, heading_level=1, max_heading_level=2)
    made = made[made.index("## Table of Contents") :]
    # continued lines join the one before: a list item is one line
    made = re.sub(r"\n    (?! *[-*])(?=\S)", " ", made)
    return HEAD + "\n" + made.rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(text(), encoding="utf-8")
