"""Letters, store bytes and token ids, as lookup tables.

A store byte holds the base in bits 0 to 2 (A 0, C 1, G 2, T 3, N 4) and the soft mask in bit 3. Token ids are those of
the HyenaDNA and Caduceus weights: A 7, C 8, G 9, T 10, N 11, so a token is (store byte & 7) + 7.
"""

import numpy as np

from dna_mamba.alphabet import UNK, VOCABULARY_SIZE, A, T

BASE_BITS = 7
SOFT_MASK = 8
STORE_A, STORE_C, STORE_G, STORE_T, STORE_N = range(5)

LETTERS = b"ACGTNNNN" * 2
"""Letter of each store byte 0 to 15; the soft mask does not show."""

_LETTER_TABLE = LETTERS + bytes([ord("N")] * 240)
_TOKEN_TABLE = bytes((b & BASE_BITS) + A if (b & BASE_BITS) <= STORE_N else UNK for b in range(256))
_COMPLEMENT_STORE = bytes(
    (STORE_T - (b & BASE_BITS)) | (b & SOFT_MASK) if (b & BASE_BITS) <= STORE_T and b < 16 else b for b in range(256)
)
_COMPLEMENT_TOKEN = bytes(A + T - b if A <= b <= T else b for b in range(256))


# arrays, not Python integers, which NumPy would convert on every call: a tenth of a microsecond counts for short windows
ONE, SEVEN, EIGHT = np.array(1, np.uint8), np.array(7, np.uint8), np.array(8, np.uint8)


def complement_table() -> np.ndarray:
    """Token id of the complement of each of the 16 embedding rows: 7 <-> 10, 8 <-> 9, all others themselves."""
    return np.frombuffer(_COMPLEMENT_TOKEN, np.uint8)[:VOCABULARY_SIZE].copy()


def tokens_of(text: str, rna: bool = False) -> np.ndarray:
    """Turn letters of either case into token ids (uint8) as a FASTA is read: IUPAC codes become N, and U too, unless it is T.

    Args:
        text: Letters.
        rna: Read U as T.

    Raises:
        ValueError: A character is not an IUPAC letter of DNA.
    """
    letters = text.encode("ascii", "replace")
    stored = np.frombuffer(letters.translate(RNA_TABLE if rna else FASTA_TABLE), np.uint8)
    if stored.size and stored.max() == INVALID:
        position = int(np.argmax(stored == INVALID))
        raise ValueError(
            f"character {text[position]!r} at position {position + 1} is no letter of DNA (ACGT, N or IUPAC)"
        )
    return np.frombuffer(stored.tobytes().translate(_TOKEN_TABLE), np.uint8)


def letters_of_store(stored: np.ndarray) -> str:
    """Turn store bytes into upper-case letters."""
    return stored.tobytes().translate(_LETTER_TABLE).decode("ascii")


def tokens_of_store(stored: np.ndarray) -> np.ndarray:
    """Turn store bytes of any shape into token ids (uint8), in a new array.

    (b & 7) + 7 equals (b | 8) - 1 for every store byte, which saves a pass over memory wherever the mask is set or not.
    """
    tokens = np.bitwise_or(stored, EIGHT)
    return np.subtract(tokens, ONE, tokens)


def reverse_complement_store(stored: np.ndarray) -> np.ndarray:
    """Turn store bytes (one sequence) into those of the other strand; the soft mask goes along."""
    return np.frombuffer(stored.tobytes().translate(_COMPLEMENT_STORE), np.uint8)[::-1]


def reverse_complement_tokens(tokens: np.ndarray) -> np.ndarray:
    """Turn token ids (one sequence, uint8) into those of the other strand, in a new contiguous array."""
    return np.ascontiguousarray(np.frombuffer(tokens.tobytes().translate(_COMPLEMENT_TOKEN), np.uint8)[::-1])


def count_uracil(text: str) -> int:
    """Count the letters U of either case."""
    return text.count("U") + text.count("u")


INVALID = 255
OTHER = 16
"""Bit set by FASTA_TABLE on letters that become N without being N: the other IUPAC codes, and U unless it is read as T."""


def fasta_table(rna: bool = False) -> bytes:
    """Table from a FASTA byte to a store byte; OTHER marks codes that turn into N, INVALID bytes that may not stand there."""
    table = bytearray([INVALID] * 256)
    for value, letter in enumerate("ACGTN"):
        table[ord(letter)], table[ord(letter.lower())] = value, value | SOFT_MASK
    for letter in "RYSWKMBDHVU":
        table[ord(letter)], table[ord(letter.lower())] = STORE_N | OTHER, STORE_N | OTHER | SOFT_MASK
    if rna:
        table[ord("U")], table[ord("u")] = STORE_T, STORE_T | SOFT_MASK
    return bytes(table)


FASTA_TABLE, RNA_TABLE = fasta_table(), fasta_table(rna=True)
