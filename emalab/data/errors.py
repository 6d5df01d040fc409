"""What can be wrong with a data set; each error names the file and the way out."""


class DataError(ValueError):
    """A data set, or a file in it, that cannot be used. `kind` groups problems in a report."""

    kind = "invalid"


class MissingFileError(DataError):
    """A file or folder that the layout of the data set promises is not there."""

    kind = "missing"


class UnreadableFileError(DataError):
    """A file that is not an image of a usable kind, is truncated, or may not be opened."""

    kind = "unreadable"


class SizeMismatchError(DataError):
    """An image and its label map differ in height or width."""

    kind = "size mismatch"


class OrientationError(DataError):
    """An image that its EXIF orientation turns, and a mask of which nobody knows whether it is turned too."""

    kind = "orientation"


class UnknownLabelError(DataError):
    """A label map holds values outside the benchmark's label set."""

    kind = "unknown label"
