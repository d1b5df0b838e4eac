"""What an export is made of: its files, the inference function, folded norms, and what runs it elsewhere."""
