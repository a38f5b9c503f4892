"""Images to latents and back: an autoencoder, or pixels as they are."""
