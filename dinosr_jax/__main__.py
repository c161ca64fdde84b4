"""`python -m dinosr_jax` is `dinosr_jax.cli`."""

from dinosr_jax.cli import cli

if __name__ == "__main__":
    cli(prog_name="python -m dinosr_jax")
