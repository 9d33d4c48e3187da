"""What one does with a trained run: judge its samples (``evaluate``, with ``features`` of a ``classifier``), its
scores of data (``report``) and its solvers (``bench``), and look at it (``figures``, ``compass``).
"""
