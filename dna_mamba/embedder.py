# Shapes: N sequences, D model width
"""Embeddings as a scikit-learn transformer."""

from collections.abc import Iterable

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from dna_mamba.api import DnaModel, load
from dna_mamba.data.texts import is_used_up_by_reading, texts_of
from dna_mamba.errors import InputError
from dna_mamba.reading.settings import EmbedConfig
from dna_mamba.reading.vectors import num_rows_of


def _strings(X: object) -> list[str]:
    texts, single = texts_of(X, "X")
    if single:
        raise InputError("X is one sequence; give a list of sequences")
    return texts


def _refuse_iterator(X: object, what: str) -> None:
    if is_used_up_by_reading(X):
        raise InputError(f"X is a {type(X).__name__}, which {what} would use up; give a list")


class Embedder(TransformerMixin, BaseEstimator):
    """Turn sequences (strings) into vectors, in a `Pipeline`, `cross_val_score` or alone.

    Args:
        model: Path or name of a language model, or a loaded one.
        layer: 0 is the embedding, 1 the first layer, ...; -1 the last, after the final norm.
        pool: mean, last or max over a sequence; window:N or none (a vector a base) for sequences of one length, whose vectors
            are laid side by side.
        strands: forward, or both for the average with the reverse complement.
        device: auto, cpu or cuda; of a loaded model its own.
        rna: Read U as T; of a loaded model its own.
    """

    def __init__(
        self,
        model: str | DnaModel = "human-4x64",
        *,
        layer: int = -1,
        pool: str = "mean",
        strands: str = "forward",
        device: str = "auto",
        rna: bool = False,
    ):
        self.model = model
        self.layer = layer
        self.pool = pool
        self.strands = strands
        self.device = device
        self.rna = rna

    def fit(self, X: Iterable[str], y: object = None) -> "Embedder":
        """Load the model; nothing is learned from X, except the length of its sequences for pool none and window:N.

        Raises:
            InputError: The model, layer, pool or strands is at fault, or lengths differ where they must not.
        """
        _refuse_iterator(X, "fit")
        config = EmbedConfig(layer=self.layer, pool=self.pool, strands=self.strands)
        sequences, num_windows = _strings(X), 1
        if config.window is not None:
            lengths = {len(sequence) for sequence in sequences}
            if len(lengths) != 1:
                raise InputError(
                    f"pool {self.pool!r} lays vectors side by side and needs sequences of one length; these have "
                    f"{', '.join(map(str, sorted(lengths)[:3])) or 'none'}"
                )
            self.length_ = lengths.pop()
            num_windows = num_rows_of(config, self.length_)
        self.model_ = (
            self.model if isinstance(self.model, DnaModel) else load(self.model, device=self.device, rna=self.rna)
        )
        config.layer_of(self.model_.model)
        self.config_ = config
        self.n_windows_ = num_windows
        self.n_features_out_ = self.model_.width * num_windows
        return self

    def fit_transform(self, X: Iterable[str], y: object = None) -> np.ndarray:
        """Fit and transform the same sequences, read once: X may be a generator."""
        if is_used_up_by_reading(X):
            X = _strings(X)
        return self.fit(X, y).transform(X)

    def transform(self, X: Iterable[str]) -> np.ndarray:
        """Give vectors (N, D), float32; (N, W D) of W windows or bases.

        Raises:
            InputError: X holds something else than sequences, or, for pool none and window:N, not of the length of `fit`.
        """
        check_is_fitted(self)
        sequences = _strings(X)
        if self.config_.window is not None:
            for number, sequence in enumerate(sequences):
                if len(sequence) != self.length_:
                    raise InputError(f"X[{number}] has {len(sequence)} bases, those of fit had {self.length_}")
        vectors = [vector.reshape(-1) for vector in self.model_._embed(sequences, self.config_)]
        return np.stack(vectors) if vectors else np.zeros((0, self.n_features_out_), np.float32)

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """Name the columns e0, e1, ...; of windows w0_e0, w0_e1, ..."""
        check_is_fitted(self)
        names = [f"e{i}" for i in range(self.model_.width)]
        if self.config_.window is not None:
            names = [f"w{window}_{name}" for window in range(self.n_windows_) for name in names]
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> object:
        """Say that X holds strings in one dimension."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = True
        return tags
