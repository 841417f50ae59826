"""`python -m vitrail` is `vitrail`; `torchrun -m vitrail` starts it on many processes."""

from vitrail.cli import command

if __name__ == "__main__":
    command()
