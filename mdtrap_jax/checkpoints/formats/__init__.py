"""Files of weights in, arrays out; nothing in a file is ever executed."""
