"""`python -m edgert`, and what the installed command `edgert` starts: Ctrl-C is seen to before anything is imported."""

from edgert import interrupts


def main() -> None:
    """Run the command line; does not return."""
    interrupts.immediately()
    from edgert import cli

    cli.main()


if __name__ == "__main__":
    main()
