"""python -m dna_mamba.cli is dna-mamba."""

from dna_mamba.cli.main import main

if __name__ == "__main__":
    main()
