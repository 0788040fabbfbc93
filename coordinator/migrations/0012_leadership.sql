-- Who leads: one coordinator at a time issues permits and writes anything at all. Every term has a higher epoch than all
-- before it. `expires_ms` is by the clock of the database.
CREATE TABLE leadership (
    one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL UNIQUE, holder TEXT NOT NULL,
    operators TEXT NOT NULL, nodes TEXT NOT NULL, expires_ms INTEGER NOT NULL
) STRICT;
INSERT INTO leadership SELECT 1, COALESCE(MAX(CAST(value AS INTEGER)), 0), '', '', '', 0 FROM meta WHERE key = 'epoch';
DELETE FROM meta WHERE key = 'epoch';
-- The order in which brakes came, in words that every database knows. SQLite reads a table in that order.
CREATE TABLE brakes_numbered (
    number INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL UNIQUE, envelope TEXT NOT NULL
) STRICT;
INSERT INTO brakes_numbered (sha256, envelope) SELECT sha256, envelope FROM brakes;
DROP TABLE brakes;
ALTER TABLE brakes_numbered RENAME TO brakes;
