"""Names of initialisations that tests go through."""

import explainfix_ext as efx

GIVEN = {"unchanged", "fill_zero", "guided_steer", "svd_steer", "dct_steer"}  # they start from filters of another layer
DRAWN = sorted(set(efx.initializers()) - GIVEN)
