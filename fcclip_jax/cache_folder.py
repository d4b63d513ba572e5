"""The folder of what is computed once and kept between runs: text embeddings and compiled programs."""

import logging
import os
import tempfile
from pathlib import Path

import jax


def cache_directory() -> Path:
    """Where text embeddings and compiled programs are kept: $FCCLIP_CACHE, else the user's cache folder."""
    if own := os.environ.get("FCCLIP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcclip_jax"


def open_cache(cache_dir: str | os.PathLike | None) -> Path:
    """The cache folder. Has jax keep compiled programs there between runs, unless it was told a place already."""
    cache = cache_directory() if cache_dir is None else Path(cache_dir)
    if jax.config.jax_compilation_cache_dir is not None:
        return cache
    try:
        (cache / "xla").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache / "xla"):
            pass
    except OSError as error:
        logging.getLogger(__name__).warning("compiled programs are not kept for the next run: %s", error)
        return cache
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    # Also the many small programs: together they take seconds of a short run.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return cache
