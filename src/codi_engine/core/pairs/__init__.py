"""Files of clean/corrupted pairs: made, reviewed, filtered, checked."""
