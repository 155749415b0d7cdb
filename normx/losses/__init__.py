"""Losses of rows of logits: fused, differentiable on every library, defined at their limits."""

from normx.losses.continual import average_accuracy as average_accuracy
from normx.losses.continual import class_incremental_accuracy as class_incremental_accuracy
from normx.losses.continual import forgetting as forgetting
from normx.losses.continual import masked_cross_entropy as masked_cross_entropy
from normx.losses.continual import task_incremental_accuracy as task_incremental_accuracy
from normx.losses.evidential import evidential_loss as evidential_loss
from normx.losses.fenchel_young import entmax15_loss as entmax15_loss
from normx.losses.fenchel_young import entmax_loss as entmax_loss
from normx.losses.fenchel_young import sparsemax_loss as sparsemax_loss
from normx.losses.head import HeadStep as HeadStep
from normx.losses.head import SphericalHead as SphericalHead
from normx.losses.noisy import noisy_cross_entropy as noisy_cross_entropy
from normx.losses.softmax import CrossEntropy as CrossEntropy
from normx.losses.softmax import cross_entropy as cross_entropy
from normx.losses.spherical import SphericalPartials as SphericalPartials
from normx.losses.spherical import SphericalSums as SphericalSums
from normx.losses.spherical import spherical_cross_entropy as spherical_cross_entropy
from normx.losses.spherical import taylor_cross_entropy as taylor_cross_entropy
from normx.losses.spherical import zloss as zloss
