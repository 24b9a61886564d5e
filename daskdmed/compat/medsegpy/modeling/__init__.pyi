from .build import get_model as get_model
from .model import History as History
from .model import Model as Model
from .unet import UNet as UNet
