"""This room explains networks: saliency of filters, spectra of layers (ExplainSteer), and pictures of these."""
