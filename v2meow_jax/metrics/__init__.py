"""What is measured on final waveforms; nothing here knows of a model."""
