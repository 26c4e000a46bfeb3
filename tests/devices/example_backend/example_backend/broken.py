"""A backend whose library does not load."""

raise OSError("its library is broken")
