"""Run the command line: python -m jaxdistill COMMAND."""

from jaxdistill.main import main

if __name__ == "__main__":
    main()
