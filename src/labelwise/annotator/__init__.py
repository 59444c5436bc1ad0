"""The annotator: a labelling session without a screen, and the local web page that shows it.

`session.AnnotationSession` is the whole of it for programs and tests; `server` puts it on 127.0.0.1.
"""
