"""`python -m pspnet`, the same as `pspnet`."""

from pspnet.cli import main

main()
