r"""How uncertain a classifier is of each item, and which items to ask about.

Every measure is higher where less is certain, so that one `select` serves all of them.  They take
scores (logits), and compute with their log-weights: an item of which all but 1e-30 is certain has
that uncertainty, and not 0.

Two more of the alternatives that Gonsior et al. (2022) compare are not measures: temperature
scaling has `normx.calibration.fit_temperature` and the keyword `temperature`, label smoothing a
keyword of `normx.losses.cross_entropy`.
"""

from normx.uncertainty.committee import consensus_kl as consensus_kl
from normx.uncertainty.committee import mc_dropout as mc_dropout
from normx.uncertainty.committee import vote_entropy as vote_entropy
from normx.uncertainty.confidence import entropy as entropy
from normx.uncertainty.confidence import least_confidence as least_confidence
from normx.uncertainty.confidence import margin as margin
from normx.uncertainty.evidence import evidential as evidential
from normx.uncertainty.evidence import inhibited as inhibited
from normx.uncertainty.selection import clip_uncertain as clip_uncertain
from normx.uncertainty.selection import select as select
from normx.uncertainty.trust import trust_score as trust_score
