"""Family of SmolLM2-135M fine-tunes and tool-selection tasks from BFCL: the run that is real and fits a CPU.

`python -m souping.examples.smollm` makes both; `python -m souping +experiment=smollm_tools` soups them. Nothing
of BFCL or of the model is part of this package: both are read from where they were installed or downloaded.
"""
