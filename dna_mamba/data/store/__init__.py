"""The genome store: all bases of an assembly in one mapped file, packed from FASTA or GenBank, checked byte by byte."""
