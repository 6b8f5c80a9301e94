//! Who may get what, row by row.
