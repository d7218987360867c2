"""Where images come from: folders, tars, tables, lists, arrays, packs, custom classes."""
