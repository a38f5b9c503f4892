"""What the health check `codec` sees of a preparation: some real images through the codec and back."""

from __future__ import annotations

import numpy as np
import torch

from dit.codec.base import Codec, pixels_to_latents, sample_posterior
from dit.codec.open import open_codec
from dit.data.images import CorruptImageError
from dit.data.items import Source, load_ahead
from dit.health.bounds import Float64
from dit.health.preparation import IMAGES, SD_SCALE, CodecView, psnr
from dit.health.watch import Watch
from dit.storage import Store
from dit.study.config import PixelCodec, StudyConfig


def check_codec(config: StudyConfig, store: Store, source: Source, encoder: Codec) -> None:
    """Check the codec with the source's first images, before any shard is made.

    Raises UnhealthyError when the check says stop.
    """
    watch = Watch(config, None, store)
    watch.look("codec", 0, lambda: _try_out(config, source, encoder))
    watch.flush()


def _try_out(config: StudyConfig, source: Source, encoder: Codec) -> CodecView | None:
    items = list(source.items[:IMAGES])
    loaded = [image for _, image in load_ahead(source, items) if not isinstance(image, CorruptImageError)]
    if not loaded:
        return None
    images, dataset = np.stack(loaded), config.dataset
    encoded = torch.from_numpy(encoder.encode(images, False))
    if not encoded.isfinite().all():
        # The encoder of the shards names the images of such values.
        return None
    if isinstance(dataset.codec, PixelCodec):
        latents = pixels_to_latents(encoded)
    else:
        moments, scale = encoded[:, 0], dataset.codec.scale_factor
        # The mean of the posterior: noise would blur the comparison.
        latents = sample_posterior(moments, torch.zeros(len(moments), moments.shape[1] // 2, *moments.shape[2:]), scale)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder = open_codec(dataset, device, decoding=True, batch=config.fit.decode_batch)
    over = (0, 2, 3)
    is_published = not isinstance(dataset.codec, PixelCodec) and dataset.codec.scale_factor == SD_SCALE
    mean_error, std_error = _errors(latents.double()) if is_published and len(latents) > 1 else (None, None)
    return CodecView(
        is_autoencoder=not isinstance(dataset.codec, PixelCodec),
        psnr=psnr(images, decoder.decode(latents)),
        mean_C=latents.double().mean(dim=over).numpy(),
        std_C=latents.double().std(dim=over).numpy(),
        mean_error_C=mean_error,
        std_error_C=std_error,
    )


def _errors(x_NCHW: torch.Tensor) -> tuple[Float64, Float64]:
    """Return the standard errors of mean and standard deviation per channel [C], from the spread between images."""
    images, inside = len(x_NCHW), (2, 3)
    mean_C = x_NCHW.mean(dim=(0, 2, 3))
    power_NC = (x_NCHW - mean_C[:, None, None]).square().mean(dim=inside)
    mean_error = x_NCHW.mean(dim=inside).std(dim=0) / images**0.5
    # d(std) = d(variance) / (2 std)
    std_error = power_NC.std(dim=0) / images**0.5 / (2 * power_NC.mean(dim=0).sqrt())
    return mean_error.numpy(), std_error.numpy()
