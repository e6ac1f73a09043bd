"""``python -m pyllama2c`` is the ``pyllama2c`` command."""

from pyllama2c.cli import main

main()
