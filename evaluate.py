"""Score: python evaluate.py run=outputs/NAME/STAMP   (--help lists all options)."""

from sdft.__main__ import run_program

if __name__ == "__main__":
    run_program("sdft.apps.evaluate")
