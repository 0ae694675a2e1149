"""Token ids in, one vector or one set of scores per base out."""
