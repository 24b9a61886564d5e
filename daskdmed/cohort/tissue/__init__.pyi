from .find import tissue_mask as tissue_mask
from .find import tissue_masks as tissue_masks
from .mask import TissueMask as TissueMask
