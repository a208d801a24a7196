"""What can go wrong and be mended by the user, said in one line."""


class Problem(RuntimeError):
    """Its message names what is wrong, what was expected, and what to do, in one line."""
