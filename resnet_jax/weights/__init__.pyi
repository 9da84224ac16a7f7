from .adopt import read_state_dict as read_state_dict
from .begin import load_into as load_into
from .convert import from_torch as from_torch
from .convert import to_torch as to_torch
from .hub import normalization as normalization
from .preprocessing import Preprocessing as Preprocessing
from .pretrained import Pretrained as Pretrained
from .pretrained import load_pretrained as load_pretrained
