"""`python -m lmos_mesh.cli`: the command line where no script is installed."""

from lmos_mesh.cli import main

main()
