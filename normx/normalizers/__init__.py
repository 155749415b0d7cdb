"""The records, a file per family; `normx` exports each function with one line."""
