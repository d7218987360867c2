"""The paper: its figures and tables as studies, its printed numbers, its claims."""
