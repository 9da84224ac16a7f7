from .mesh import AXIS as AXIS
from .mesh import make_mesh as make_mesh
from .mesh import replicate as replicate
from .processes import start as start
