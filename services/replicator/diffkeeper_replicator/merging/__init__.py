"""How the contents of one file, written at several sites, become one: pure, without files, clock or network."""
