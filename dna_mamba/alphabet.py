"""Token ids: those of the HyenaDNA and Caduceus weights, which every model here reads and writes."""

CLS, SEP, BOS, MASK, PAD, RESERVED, UNK, A, C, G, T, N = range(12)
NUM_TOKENS = 12
VOCABULARY_SIZE = 16
"""Rows of an embedding: the tokens padded to a multiple of 8, as in the published weights."""
ACGT = slice(A, T + 1)
