"""The models: tensors in, tensors out. No module here reads files, handles strings or chooses devices."""
