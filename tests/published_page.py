"""docs/verified-families.md: which families are verified by whom, told by the templates themselves. `python tests/published_page.py` writes it."""
def page() -> str:
    return ""
