"""The exceptions that Retcon raises: each message is one sentence that names the cure."""


class RetconError(Exception):
    """Anything a user can mend; the command line prints its message and exits with 2."""


class RequestError(RetconError):
    """A file of edits, cases or questions is wrong; the message names the line."""


class UnsupportedModel(RetconError):  # noqa: N818 - it names a state of the model, not a failure of ours
    """The model's structure cannot be edited this way; the message names the module."""


class PatchError(RetconError):
    """A patch does not fit the model, its file is damaged, or patches do not compose."""


class RetconWarning(UserWarning):
    """Something works but not quite as the user may think; the message says what and what to do about it."""
