"""python -m dna_mamba is dna-mamba."""

from dna_mamba.cli import main

if __name__ == "__main__":
    main()
