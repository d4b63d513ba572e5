"""Images: reading files and making them what the model was trained on. numpy and Pillow only, no jax."""
