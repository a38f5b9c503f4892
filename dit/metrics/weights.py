"""Files that an evaluation needs and no stage makes: where they lie, and whether they are the right ones.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dit import layout
from dit.config import AdmReference, StudyConfig
from dit.errors import MismatchError, MissingError
from dit.storage import Store, fetch_file, sha256_file

# The TensorFlow graph of 2015 that FID is defined by (Heusel et al. 2017), as torch-fidelity's release v0.2.0 holds it.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class EvaluationFiles:
    """Local path and SHA-256 of each."""

    inception: tuple[Path, str] | None
    """InceptionV3's weights; None where another extractor is used."""
    adm: tuple[Path, str] | None
    """ADM's reference file; None where the dataset is the reference."""


def find_evaluation_files(config: StudyConfig, store: Store) -> EvaluationFiles:
    """Find those files; MissingError and MismatchError say what to put where."""
    evaluation = config.evaluation
    inception = find_inception(config, store) if evaluation.extractor == "inception" else None
    adm = fetch_file(evaluation.reference.path) if isinstance(evaluation.reference, AdmReference) else None
    return EvaluationFiles(inception, (adm, sha256_file(adm)) if adm else None)


def find_inception(config: StudyConfig, store: Store) -> tuple[Path, str]:
    """Local path and SHA-256 of the weights that `evaluation` names, or that lie in the store.

    Raises MissingError, which says which file to put where, and MismatchError for a file that is another one.
    """
    evaluation = config.evaluation
    expected = evaluation.extractor_sha256 or INCEPTION_SHA256
    key = layout.weights(INCEPTION_FILE)
    place = evaluation.extractor_weights or f"{store.url}/{key}"
    try:
        path = fetch_file(evaluation.extractor_weights) if evaluation.extractor_weights else store.local(key)
    except MissingError:
        raise MissingError(
            f"{place}: the InceptionV3 weights are missing; put {INCEPTION_FILE} of torch-fidelity's release v0.2.0"
            f" (SHA-256 {INCEPTION_SHA256}) there, or set evaluation.extractor_weights to its path or store address"
        ) from None
    actual = sha256_file(path)
    if actual != expected:
        raise MismatchError(
            f"{place}: SHA-256 is {actual}, expected {expected}; fetch {INCEPTION_FILE} again, or, to measure with"
            f" other weights, set evaluation.extractor_sha256={actual}"
        )
    return path, actual
