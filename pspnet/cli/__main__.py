"""`python -m pspnet.cli`, the same as `pspnet`."""

from pspnet.cli import main

main()
