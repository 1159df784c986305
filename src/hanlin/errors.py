"""The errors that a user can cause, each with the value, what was expected and the next step in its message.

    HanlinError                exit status 2, one line, no traceback
    ├── ConfigError            a recipe or an override that cannot be understood or cannot work
    ├── DataError              a row, a file or a set of examples that cannot be used
    ├── TemplateError          a chat template that disagrees with our format, or messages that a format cannot hold
    ├── CheckpointError        a model directory or file that is missing, damaged or of an unknown kind
    ├── FetchError             something could not be downloaded, or came with the wrong checksum
    └── TrainingError          a run that had to stop: non-finite loss, no disk space, nothing to resume

Everything else that is raised is a defect of ours and keeps its traceback.
"""


class HanlinError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(HanlinError):
    """A recipe, an option or an override is wrong."""


class DataError(HanlinError):
    """Data cannot be read, or a row cannot be used."""


class TemplateError(HanlinError):
    """A conversation cannot be rendered, or the checkpoint's own template says something else than we do."""


class CheckpointError(HanlinError):
    """A model cannot be read or written."""


class FetchError(HanlinError):
    """A download failed or brought other bytes than expected."""


class TrainingError(HanlinError):
    """A training run cannot start or cannot go on."""
