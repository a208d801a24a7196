"""What readers see: figures, tables, executed notebooks, the page of the paper."""
