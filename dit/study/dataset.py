"""The `dataset:` section of a study file: which images, and how they become shards. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dit.study.fields import Address, Fraction, Positive, Section, Seed, Slug
from dit.study.variants import InputSpec


class DigitsSource(Section):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, which are part of the library."""

    kind: Literal["digits"]


class FolderSource(Section):
    """A folder with one folder of images per class, like ImageNet's training set."""

    kind: Literal["folder"]
    path: Address
    """Local path of the folder that holds the class folders."""


class TarSource(Section):
    """Tar files of images. A member's class is its folder, or without a folder the name of its tar file."""

    kind: Literal["tar"]
    path: Address
    """A local path or glob of tar files, or the store address of a folder of them."""


class PixelCodec(Section):
    """No autoencoder: the model denoises the pixels themselves, scaled to [-1, 1]."""

    kind: Literal["pixels"]
    channels: Literal[1, 3] = 3
    """1 for greyscale, 3 for RGB."""


class VaeCodec(Section):
    """A diffusers AutoencoderKL (Rombach et al. 2022): 8x8 pixels become one latent position of 4 channels."""

    kind: Literal["vae"]
    weights: Address
    """Local path or store address of a folder that `AutoencoderKL.save_pretrained` wrote."""
    decoder: Address | None = None
    """Another autoencoder to decode with; unset, the encoder's own. ft-EMA and ft-MSE share their encoder. In no hash:
    samples and metrics record the SHA-256 of the decoder's weights, and those of another decoder are refused."""
    scale_factor: float = Field(default=0.18215, gt=0)
    """Factor on the latents, so that their variance is about 1."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision in which images are encoded and decoded."""


class DatasetConfig(Section):
    """Which images, and how they become shards. The dataset's identity is its name, not the path of its files."""

    name: Slug
    """Name of the dataset: studies with equal `dataset` sections share its shards."""
    source: Annotated[DigitsSource | FolderSource | TarSource, Field(discriminator="kind")]
    codec: Annotated[PixelCodec | VaeCodec, Field(discriminator="kind")]
    image_size: Positive
    """Side of the square image after ADM's centre crop, in pixels."""
    classes: Positive
    """Number of classes; the source must have as many."""
    mirror: bool = True
    """Train on each image and on its mirror image."""
    samples_per_shard: Positive = 4096
    """Images per shard, a tar file."""
    shuffle_seed: Seed = 0
    """Seed of the order in which images enter the shards, so that every shard mixes classes."""
    max_corrupt_fraction: Fraction = 0.0
    """Preparation fails when a larger share of the images cannot be read."""

    @property
    def inputs(self) -> InputSpec:
        """Shape of one latent and the number of classes."""
        if isinstance(self.codec, VaeCodec):
            return InputSpec(channels=4, size=self.image_size // 8, classes=self.classes)
        return InputSpec(channels=self.codec.channels, size=self.image_size, classes=self.classes)

    @model_validator(mode="after")
    def _sizes_fit(self) -> DatasetConfig:
        if isinstance(self.codec, VaeCodec) and self.image_size % 8:
            raise ValueError(f"image_size={self.image_size} is not divisible by 8, which the autoencoder needs")
        if isinstance(self.source, DigitsSource) and (
            self.image_size != 8 or self.classes != 10 or self.codec != PixelCodec(kind="pixels", channels=1)
        ):
            raise ValueError("the digits are image_size=8, classes=10, codec={kind: pixels, channels: 1}")
        return self

    def identity(self) -> dict[str, Any]:
        """The values that decide the shards' content: all but paths, the decoder and `max_corrupt_fraction`."""
        codec = self.codec.hashed(exclude={"weights", "decoder"})
        own = self.hashed(exclude={"source", "codec", "max_corrupt_fraction"})
        return {**own, "source": {"kind": self.source.kind}, "codec": codec}
