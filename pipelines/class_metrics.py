# Shapes: N sequences, T positions, K classes
"""How well classes are told apart, with intervals, and what simple models reach on the same windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dna_mamba.data.vocabulary import BASE_BITS, STORE_C, STORE_G, STORE_T

CALIBRATION_BINS = 10
MAX_K = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of correct answers with its Wilson interval (Wilson 1927, equation as in Brown et al. 2001)."""

    correct: int
    number: int
    low: float
    high: float
    effective: float
    """Independent answers that the interval counts with; fewer than `number` where windows overlap."""

    @property
    def value(self) -> float:
        """Correct over all; NaN of none."""
        return self.correct / self.number if self.number else float("nan")

    @classmethod
    def of(cls, correct: int, number: int, confidence: float = 0.95, effective: float | None = None) -> "Share":
        """Count.

        Args:
            correct: Right answers.
            number: Answers.
            confidence: Of the interval.
            effective: Independent answers among them; without it all are.
        """
        from scipy.stats import norm  # here: slow to import

        if number == 0:
            return cls(correct=0, number=0, low=0.0, high=1.0, effective=0.0)
        n = float(number) if effective is None else max(1.0, min(float(number), effective))
        share, z = correct / number, float(norm.ppf(0.5 + confidence / 2))
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        low, high = max(0.0, middle - half), min(1.0, middle + half)
        return cls(
            correct=correct,
            number=number,
            low=low if correct else 0.0,
            high=high if correct < number else 1.0,
            effective=n,
        )


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """What a classifier did on a set of sequences."""

    labels: tuple[str, ...]
    accuracy: Share
    by_class: tuple[Share, ...]
    """Of the sequences of each class, those that were recognised."""
    confusion: np.ndarray
    """Rows are true classes, columns answers."""
    calibration_error: float
    """Mean distance between confidence and accuracy over ten bins of confidence, weighted by their number (Guo et al. 2017,
    equation 3)."""
    log_loss: float
    """Mean negative log-likelihood of the true class, nats."""

    def as_dict(self) -> dict[str, object]:
        """Give plain values."""

        def share(one: Share) -> dict[str, object]:
            value = one.value if one.number else None
            return {"correct": one.correct, "number": one.number, "value": value, "low": one.low, "high": one.high,
                    "effective": one.effective}  # fmt: skip

        return {
            "accuracy": share(self.accuracy),
            "by_class": {label: share(one) for label, one in zip(self.labels, self.by_class, strict=True)},
            "confusion": self.confusion.tolist(),
            "calibration_error": self.calibration_error,
            "log_loss": self.log_loss,
        }


def report(
    probabilities_NK: np.ndarray,
    targets_N: np.ndarray,
    labels: Sequence[str],
    confidence: float = 0.95,
    effective: float | None = None,
) -> ClassReport:
    """Compare probabilities with true classes; `effective` as in `Share.of`."""
    from sklearn.metrics import confusion_matrix  # here: slow to import

    answers_N = probabilities_NK.argmax(1)
    right_N = answers_N == targets_N
    confusion = confusion_matrix(targets_N, answers_N, labels=np.arange(len(labels)))
    sure_N = probabilities_NK.max(1)
    bins_N = np.minimum((sure_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    error = 0.0
    for number in range(CALIBRATION_BINS):
        chosen = bins_N == number
        if chosen.any():
            error += chosen.mean() * abs(right_N[chosen].mean() - sure_N[chosen].mean())
    of_truth_N = probabilities_NK[np.arange(len(targets_N)), targets_N]
    return ClassReport(
        labels=tuple(labels),
        accuracy=Share.of(int(right_N.sum()), len(right_N), confidence, effective),
        by_class=tuple(
            Share.of(
                int(row[i]),
                int(row.sum()),
                confidence,
                None if effective is None else effective * row.sum() / len(right_N),
            )
            for i, row in enumerate(confusion)
        ),
        confusion=confusion,
        calibration_error=float(error),
        log_loss=float(-np.log(np.maximum(of_truth_N, 1e-300)).mean()),
    )


def count_kmers(stored_NT: np.ndarray, k: int) -> np.ndarray:
    """Count the k-mers of each sequence (N, 4^k), A C G T as digits of a number in base 4; those with an N do not count.

    Raises:
        ValueError: k is not 1 to 8.
    """
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k {k} must lie between 1 and {MAX_K}")
    counts = np.zeros((len(stored_NT), 4**k), np.int32)
    for row, stored in enumerate(stored_NT & BASE_BITS):
        known = stored <= STORE_T
        codes = np.zeros(max(0, len(stored) - k + 1), np.int64)
        whole = np.ones(len(codes), bool)
        for i in range(k):
            codes = 4 * codes + np.where(known, stored, 0)[i : i + len(codes)]
            whole &= known[i : i + len(codes)]
        counts[row] = np.bincount(codes[whole], minlength=4**k)
    return counts


def share_of_gc(stored_NT: np.ndarray) -> np.ndarray:
    """Give the share of G and C among the known bases of each sequence (N, 1)."""
    stored_NT = stored_NT & BASE_BITS
    known_N = np.maximum((stored_NT <= STORE_T).sum(1), 1)
    return (((stored_NT == STORE_C) | (stored_NT == STORE_G)).sum(1) / known_N)[:, None]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A simple classifier, chosen on validation, and its report on test."""

    name: str
    chosen: str
    report: ClassReport


def baselines(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    labels: Sequence[str],
    *,
    ks: Sequence[int] = (2, 4, 6),
    strengths: Sequence[float] = (1e-3, 1e-1, 10.0),
    effective: float | None = None,
) -> list[Baseline]:
    """Fit logistic regressions on k-mer shares and on the share of G and C; choose k and strength on validation.

    Args:
        train: Store bytes (N, T) and classes (N,).
        valid: Those that choose.
        test: Those that are reported.
        labels: Names of the classes.
        ks: Lengths of k-mers to choose from.
        strengths: Inverse strengths of the L2 penalty to choose from.
        effective: Independent test windows, as in `Share.of`.
    """
    from sklearn.linear_model import LogisticRegression  # here: slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def shares(stored_NT: np.ndarray, k: int) -> np.ndarray:
        counts = count_kmers(stored_NT, k)
        return counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def best(name: str, features: dict[str, Any]) -> Baseline:
        found: tuple[float, str, Any, Any] | None = None
        for words, function in features.items():
            of_train, of_valid = function(train[0]), function(valid[0])
            for strength in strengths:
                model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
                model.fit(of_train, train[1])
                accuracy = float((model.predict(of_valid) == valid[1]).mean())
                if found is None or accuracy > found[0]:
                    found = accuracy, f"{words}, C = {strength:g}", model, function
        assert found is not None
        _, chosen, model, function = found
        probabilities = np.zeros((len(test[1]), len(labels)))
        probabilities[:, model.classes_] = model.predict_proba(function(test[0]))
        chosen = f"{chosen}; {len(train[1]):,} training windows"
        return Baseline(name=name, chosen=chosen, report=report(probabilities, test[1], labels, effective=effective))

    return [
        best("k-mers + logistic regression", {f"k = {k}": lambda stored, k=k: shares(stored, k) for k in ks}),
        best("share of G and C", {"one number": share_of_gc}),
    ]


MOST_LABELLED = 40
"""Classes whose names are written beside a confusion matrix; of more, some."""
MOST_COUNTED = 15
"""Classes whose counts are written into a confusion matrix; of more, colour alone says them."""


def draw_confusion(found: ClassReport, picture: Path, title: str) -> Path:
    """Draw the confusion matrix, coloured by the share of each true class; its size has a bound, whatever the classes."""
    from dna_mamba.pipelines.pictures import figure_of, save

    classes = len(found.labels)
    size = 2.2 + 0.9 * min(classes, 8)
    figure = figure_of(size + 1, size)
    axes = figure.subplots()
    shares = found.confusion / np.maximum(found.confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for row, column in np.ndindex(*found.confusion.shape) if classes <= MOST_COUNTED else ():
        dark = shares[row, column] > 0.6
        axes.text(
            column,
            row,
            f"{found.confusion[row, column]:,}",
            ha="center",
            va="center",
            fontsize=8 if classes <= 8 else 6,
            color="white" if dark else "black",
        )
    ticks = range(0, classes, -(-classes // MOST_LABELLED))
    names = [found.labels[i] if len(found.labels[i]) <= 24 else found.labels[i][:23] + "…" for i in ticks]
    small = 10 if classes <= 8 else 7
    axes.set_xticks(list(ticks), names, rotation=45 if classes <= 15 else 90, ha="right", fontsize=small)
    axes.set_yticks(list(ticks), names, fontsize=small)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    accuracy = found.accuracy
    axes.set_title(f"{title}\naccuracy {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})", fontsize=10)
    figure.colorbar(image, label="share of the true class")
    return save(figure, picture)
