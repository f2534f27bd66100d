"""Words for errors."""


def first_line(error: BaseException) -> str:
    """Its message without what libraries add below; its class, if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
