from .opening import announce as announce
from .run import Run as Run
from .session import open_run as open_run
