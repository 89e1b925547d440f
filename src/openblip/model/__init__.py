"""The model: tensors in, tensors out. It knows no files, no strings and no devices of its own."""
