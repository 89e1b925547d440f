"""One data class per task: how records become samples, and how samples become the tensors of a batch."""
