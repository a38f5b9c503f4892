"""The work beside the models (encoding, decoding, features, intervals), and the disk of a study. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from dit.study.config import AdmReference, DigitsSource, StudyConfig, VaeCodec
from dit.study.fields import Precision
from dit.study.paper import on_imagenet

IMAGENET_IMAGES = 1_281_167
DIGITS_IMAGES = 1797
# Gflops (a multiply-accumulate is one) of the autoencoder of Stable Diffusion for one image of 256 x 256, and of the
# feature extractors for one image. Counted with torch's FlopCounterMode on the networks themselves.
ENCODER_GFLOPS, DECODER_GFLOPS, AUTOENCODER_SIDE = 136.4, 311.1, 256
FEATURE_GFLOPS = {"inception": 5.71, "digits": 0.000665}
INTERVAL_SECONDS = {"inception": 1.0, "digits": 0.004}
"""Assumed time of one bootstrap draw of the Fréchet distance, on one process: docs/plan.md."""
SHARD_OVERHEAD = 2048
"""Bytes of a sample's two tar headers, its array's header and its label, with padding."""
STATE_BYTES = 16
"""Bytes of a checkpoint per parameter: weights, EMA and AdamW's two moments in float32."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes in the store at the end of a study."""

    shards: float | None
    """None if the number of images is not known before preparation."""
    checkpoints: float
    samples: float

    @property
    def total(self) -> float:
        """The sum of the parts that are known."""
        return (self.shards or 0.0) + self.checkpoints + self.samples


def image_count(config: StudyConfig) -> int | None:
    """Images of the dataset, if the study file tells it: of ImageNet and of the digits; else None."""
    if isinstance(config.dataset.source, DigitsSource):
        return DIGITS_IMAGES
    return IMAGENET_IMAGES if on_imagenet(config) else None


def codec_precision(config: StudyConfig) -> Precision:
    """Precision in which the autoencoder computes: with dtype float32, its convolutions use TF32 on a GPU."""
    codec = config.dataset.codec
    return "tf32" if not isinstance(codec, VaeCodec) or codec.dtype == "float32" else "bf16"


def encoding_macs(config: StudyConfig, images: int) -> float:
    """Multiply-accumulates that turn images, and their mirror images, into latents; 0 for pixels."""
    return images * (2 if config.dataset.mirror else 1) * _autoencoder(config, ENCODER_GFLOPS)


def decoding_macs(config: StudyConfig) -> float:
    """Multiply-accumulates that turn one sample set into images; 0 for pixels."""
    return config.sampling.num_samples * _autoencoder(config, DECODER_GFLOPS)


def feature_macs(config: StudyConfig, images: int) -> float:
    """Multiply-accumulates of the feature extractor for these images."""
    return images * FEATURE_GFLOPS[config.evaluation.extractor] * 1e9


def interval_seconds(config: StudyConfig) -> float:
    """Assumed seconds for the intervals of one sample set."""
    return config.evaluation.resamples * INTERVAL_SECONDS[config.evaluation.extractor]


def reference_images(config: StudyConfig) -> int:
    """Images of the dataset that pass the extractor once, for the reference; 0 with ADM's file."""
    return 0 if isinstance(config.evaluation.reference, AdmReference) else image_count(config) or 0


def disk(config: StudyConfig) -> Disk:
    """Disk of the store: shards, checkpoints that stay, sample sets."""
    dataset, inputs, fit = config.dataset, config.dataset.inputs, config.fit
    values = inputs.channels * inputs.size**2 * (2 if dataset.mirror else 1)
    # Moments are float16 mean and log-variance of the image and its mirror image; pixels are bytes.
    sample_bytes = 4 * values if isinstance(dataset.codec, VaeCodec) else inputs.channels * inputs.size**2
    images = image_count(config)
    kept = len({*config.evaluation.at_steps, config.train.steps}) + fit.keep_checkpoints
    channels = 3 if isinstance(dataset.codec, VaeCodec) else inputs.channels
    sets = len(config.runs) * len(config.evaluation.at_steps)
    return Disk(
        shards=images * (sample_bytes + SHARD_OVERHEAD) if images else None,
        checkpoints=sum(kept * STATE_BYTES * run.spec.parameters(inputs) for run in config.runs),
        samples=sets * config.sampling.num_samples * channels * dataset.image_size**2,
    )


def _autoencoder(config: StudyConfig, gflops: float) -> float:
    """Multiply-accumulates for one image: in proportion to its pixels."""
    if not isinstance(config.dataset.codec, VaeCodec):
        return 0.0
    return gflops * 1e9 * (config.dataset.image_size / AUTOENCODER_SIDE) ** 2
