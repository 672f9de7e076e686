"""Files of rows: bytes, unpacked by what they begin with → text in UTF-8, or columns → rows that know their place."""
