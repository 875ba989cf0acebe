"""Pairs of the policy's own finished pictures, made again every few steps: online DPO and SoPO."""
