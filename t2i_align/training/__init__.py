"""The one training loop, shared by every objective and every backbone."""
