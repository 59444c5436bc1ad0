"""Pictures, curves and static HTML pages: what people look at before they read a number."""
