"""Operations of sequence models on plain tensors; they know nothing of DNA.

This file holds no code on purpose: a regular top-level package named `kernels` would hide Hugging Face's package of
that name from anyone who starts Python in the clone. Import `dna_mamba.kernels.<operation>`.
"""
