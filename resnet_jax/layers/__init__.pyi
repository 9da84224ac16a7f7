from .conv import Conv as Conv
from .conv import convolve as convolve
from .linear import Init as Init
from .linear import Linear as Linear
from .norm import BatchNorm as BatchNorm
from .pool import avg_pool as avg_pool
from .pool import max_pool as max_pool
from .pool import max_pool_2x2 as max_pool_2x2
