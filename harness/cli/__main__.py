"""`python -m harness.cli`: the same as `cai`."""

from harness.cli import main

main()
