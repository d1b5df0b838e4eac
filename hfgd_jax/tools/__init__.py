"""Commands beside the front door: `python -m hfgd_jax.tools.NAME`."""
