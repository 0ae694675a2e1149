"""Genomes, splits and windows: from bytes in a FASTA to batches of bases."""
