"""The one loop: a target and an engine become a posterior, stored and resumed on the way."""

from ._distributed import distributed as distributed
from ._infer import infer as infer
from ._load import load as load
from ._many import infer_many as infer_many
from ._mesh import mesh as mesh
from ._replay import Replay as Replay, replay as replay
from ._resume import extend as extend, resume as resume
from ._train import Trained as Trained, train as train
from ._until import Until as Until
