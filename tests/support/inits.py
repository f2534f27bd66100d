"""Names of initialisations that tests go through."""

import explainfix_ext as efx

GIVEN = {"unchanged", "fill_zero", "guided_steer", "svd_steer", "dct_steer"}  # they start from filters of another layer
FOR_SIGNALS = {"sinc", "minirocket"}  # for some kernels (1, K) only
DRAWN = sorted(set(efx.initializers()) - GIVEN - FOR_SIGNALS)
