"""DNA language models of your own: pretrain a Mamba on single bases, from FASTA, on a laptop or a GPU."""
