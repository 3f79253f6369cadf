"""`python -m pspnet`: the same as the console command."""

from pspnet.cli import main

main()
