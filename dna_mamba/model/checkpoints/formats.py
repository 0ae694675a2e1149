"""Names of the formats of other programs that models come from and go to."""

MAMBA_SSM, TRANSFORMERS = "mamba_ssm", "transformers"
FORMATS = (MAMBA_SSM, TRANSFORMERS)
