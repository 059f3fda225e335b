"""Score: python evaluate.py run=outputs/NAME/STAMP   (--help lists all options)."""

from sdft.apps.evaluate import main

if __name__ == "__main__":
    main()
