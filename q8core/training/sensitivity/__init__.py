"""How much a float model's loss depends on each matrix of its encoder, and the bits that each gets for it.

fine-tuned model, its training examples -> ``measure``: traces and eigenvalues of the Hessian -> ``allocate``: bits by
matrix -> a scheme file for `q8bert train --scheme`. Source: Q-BERT (Shen et al., 2020); the trace and the error as in
HAWQ-V2 (Dong et al., 2020).
"""
