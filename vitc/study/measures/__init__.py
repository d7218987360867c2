"""The measures: each plans its trials and reads them."""
