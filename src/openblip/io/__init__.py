"""File services that every part of OpenBLIP shares: one module for each.

- `atomic`: write files and folders so that a reader never finds half of one
- `jsonlines`: read and append JSON Lines
- `hashing`: SHA-256 of files, with a memo on disk
- `download`: HTTP downloads that resume and are verified
- `progress`: progress bars on a terminal
- `templates`: HTML pages
- `cache`: the folder for files that can be computed or fetched again

All modules load without torch.
"""
