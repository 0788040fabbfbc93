-- Signed stops, in the order in which they came.
CREATE TABLE brakes (sha256 TEXT PRIMARY KEY, envelope TEXT NOT NULL) STRICT;
-- What permits rest on, by the digest that stands in them.
CREATE TABLE evidence (sha256 TEXT PRIMARY KEY, envelope BLOB NOT NULL) STRICT;
