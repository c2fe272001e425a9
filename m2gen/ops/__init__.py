"""The torch.library boundary: schemas, checks, fakes, derivatives. One file per op."""
