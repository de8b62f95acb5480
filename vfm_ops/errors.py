"""The errors a user meets. Each message is one sentence: what is wrong, where, and what to do."""


class VfmError(Exception):
    """Something failed that is not the user's fault and not one item's: exit code 3."""

    exit_code = 3


class UsageError(VfmError):
    """The command, recipe, path or model named by the user is wrong; nothing was written: exit code 2."""

    exit_code = 2


class WeightsUnavailable(UsageError):
    """A model's weights are not on disk and can't be downloaded; the message says what to fetch, whence, and where to."""


class MediaError(VfmError):
    """One image or video can't be decoded. It costs this item only: the item goes to quarantine with this message.

    kind: short stable name for grouping, such as 'empty', 'truncated', 'not_media', 'bomb', 'no_video', 'timeout', 'crash'.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self):
        return type(self), (self.kind, str(self))
