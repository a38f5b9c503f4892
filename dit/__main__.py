"""`python -m dit`, which is how torchrun starts a stage."""

from dit.cli.commands import main

main()
