"""Writers: each turns a finished `Audit` into text. No tensor and no torch gets here."""
